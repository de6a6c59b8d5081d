"""``LLM`` in every layout gives the same greedy tokens; so do few pages, many chunks, and a full context."""

from typing import Any

import pytest

from splitrank import LLM
from splitrank.serving.llm import Generation
from splitrank.serving.messages import EngineStats
from splitrank.serving.sampling_params import SamplingParams
from tests.e2e.servers import wait_until

OPTIONS: dict[str, Any] = {"dtype": "float32", "threads_per_rank": 1, "max_model_len": 1024}
SHORT = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)
PROMPTS: list[str | list[int]] = ["Once upon a time", "7 * 6 =", [9] * 70, [3, 1, 4, 1, 5] * 60]


def answers(prompts: Any, params: Any, **options: Any) -> list[list[int]]:
    with LLM(**{**OPTIONS, **options}) as llm:
        return tokens_of(llm.generate(prompts, params, show_progress=False))


def tokens_of(generations: list[Generation]) -> list[list[int]]:
    return [generation.token_ids for generation in generations]


@pytest.fixture(scope="module")
def one_rank() -> list[list[int]]:
    return answers(PROMPTS, SHORT)


LAYOUTS = [
    {"pp": 2},
    {"pp": 3, "pp_partition": (1, 5, 2)},
    {"tp": 2, "all_reduce": "torch"},
    {"tp": 2, "all_reduce": "quick"},
    {"tp": 2, "pp": 2},  # auto
    {"tp": 4, "all_reduce": "quick"},
    {"tp": 4, "pp": 2, "all_reduce": "quick"},
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_layouts_give_the_same_tokens(one_rank: list[list[int]], layout: dict[str, Any]) -> None:
    assert [len(tokens) for tokens in one_rank] == [16] * len(PROMPTS)
    assert answers(PROMPTS, SHORT, **layout) == one_rank


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"all_reduce": "torch"}, ["all-reduce torch (as asked)"]),
        ({}, ["all-reduce quick, codec none", "(cpu.toml)", "MiB a rank"]),
        ({"all_reduce_codec": "int8"}, ["all-reduce quick, codec int8"]),
    ],
    ids=str,
)
def test_each_stage_says_how_it_sums(options: dict[str, Any], words: list[str]) -> None:
    with LLM(**OPTIONS, tp=2, pp=2, **options) as llm:
        reports = llm._engine.client.reports  # type: ignore[attr-defined]
        assert len(llm.generate(PROMPTS[3:], SHORT)[0].token_ids) == 16
    assert len(reports) == 4 + 2 + 1
    for stage, line in enumerate(reports[4:6]):
        assert [word for word in (f"stage {stage}: ", *words) if word not in line] == []


def engine_stats(llm: LLM) -> EngineStats:
    stats: EngineStats = llm._engine.client.stats  # type: ignore[attr-defined]
    return stats


# Eight requests that grow to 5 pages of 16 tokens each; half of them sampled.
GROWING = [[100 + index] * 30 for index in range(8)]
GREEDY = SamplingParams(max_tokens=40, ignore_eos=True, temperature=0)
SAMPLED = SamplingParams(max_tokens=40, ignore_eos=True, temperature=1.0, seed=3)
MIXED = [GREEDY, SAMPLED] * 4
NUM_PAGES = 10  # for all of them


@pytest.fixture(scope="module")
def with_plenty_of_pages() -> list[list[int]]:
    with LLM(**{**OPTIONS, "max_model_len": 80, "page_size": 16, "num_pages": 100}) as llm:
        tokens = tokens_of(llm.generate(GROWING, MIXED, show_progress=False))
        assert engine_stats(llm).preemptions == 0
    return tokens


@pytest.mark.parametrize("layout", [{"pp": 1}, {"pp": 2}, {"tp": 2}], ids=str)
def test_preempted_requests_get_the_same_tokens(with_plenty_of_pages: list[list[int]], layout: dict[str, int]) -> None:
    with LLM(**{**OPTIONS, "max_model_len": 80, "page_size": 16, "num_pages": NUM_PAGES, **layout}) as llm:
        assert tokens_of(llm.generate(GROWING, MIXED, show_progress=False)) == with_plenty_of_pages
        wait_until(lambda: engine_stats(llm).free_pages == NUM_PAGES, "the pages to come back")
        stats = engine_stats(llm)
        assert stats.preemptions > 0
        assert (stats.free_slots, stats.num_preempted) == (stats.num_slots, 0)


def test_a_prompt_of_many_chunks_and_a_full_context() -> None:
    prompts = [[(7 * index) % 4000 for index in range(length)] for length in (1023, 640, 64, 65, 1)]
    last = SamplingParams(temperature=0, max_tokens=1)
    whole = answers(prompts, last, chunked_prefill_size=1024)
    assert answers(prompts, last, chunked_prefill_size=64, pp=2) == whole
    with LLM(**OPTIONS, chunked_prefill_size=64) as llm:
        assert tokens_of(llm.generate(prompts, last)) == whole
        with pytest.raises(ValueError, match=r"1024 tokens.*1023"):
            llm.generate([[5] * 1024], last)
        with pytest.raises(ValueError, match=r"1000 tokens.*25.*1024"):
            llm.generate([[5] * 1000], SamplingParams(max_tokens=25))
        (filled,) = llm.generate([[5] * 1000], SamplingParams(max_tokens=24, ignore_eos=True))
        assert (len(filled.token_ids), filled.finish_reason) == (24, "length")


COMMON = [(11 * index) % 4000 for index in range(300)]  # four whole blocks of 64
SHARING = [[*COMMON, *([50 + index] * (100 + index))] for index in range(5)]
SPLIT = [{"pp": 1}, {"pp": 2}, {"tp": 2}, {"page_size": 16}, {"page_size": 96}]


@pytest.mark.parametrize("layout", SPLIT, ids=str)
def test_a_shared_prefix_is_computed_twice_and_then_copied(layout: dict[str, int]) -> None:
    whole = answers(SHARING, SHORT, **layout, prefix_cache_mib=0)
    with LLM(**OPTIONS, **layout) as llm:
        one_by_one = [tokens_of(llm.generate([prompt], SHORT, show_progress=False)) for prompt in SHARING]
        wait_until(lambda: engine_stats(llm).cached_tokens == 3 * 256, "the count of cached tokens")
    assert [tokens for (tokens,) in one_by_one] == whole


@pytest.mark.parametrize("layout", SPLIT, ids=str)
def test_a_conversation_goes_on_from_the_turn_before(layout: dict[str, int]) -> None:
    """Four turns; each prompt is all that was said before. Only the first answer is computed again in the next turn."""
    with LLM(**OPTIONS, **layout) as llm:
        prompts, said, history = [], [], COMMON[:200]
        for turn in range(4):
            prompts.append(history)
            said += tokens_of(llm.generate([history], SHORT, show_progress=False))
            history = [*history, *said[-1], *([70 + turn] * 9)]
        # 192 of 200; then the whole prompt and answer before, but for the last token, which was never fed.
        cached = 192 + (len(prompts[1]) + 15) + (len(prompts[2]) + 15)
        wait_until(lambda: engine_stats(llm).cached_tokens == cached, "the count of cached tokens")
    assert said == answers(prompts, SHORT, **layout, prefix_cache_mib=0)
