"""``LLM`` in every layout gives the same greedy tokens; so do few pages, many chunks, and a full context."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from splitrank import LLM
from splitrank.serving.offline.llm import LLMOutput
from splitrank.serving.protocol.messages import EngineStats
from splitrank.serving.protocol.sampling_params import SamplingParams
from tests.e2e.servers import wait_until

pytestmark = pytest.mark.usefixtures("forked_ranks")
OPTIONS: dict[str, Any] = {"dtype": "float32", "threads_per_rank": 1, "max_model_len": 1024}
SHORT = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)
PROMPTS: list[str | list[int]] = ["Once upon a time", "7 * 6 =", [9] * 70, [3, 1, 4, 1, 5] * 60]

# The first ones also share prefixes.
SHARING_LAYOUTS: list[dict[str, Any]] = [{"pp": 1}, {"pp": 2}, {"tp": 2}, {"page_size": 16}, {"page_size": 96}]
LAYOUTS: list[Any] = [
    *SHARING_LAYOUTS,
    {"pp": 3, "pp_partition": (1, 5, 2)},
    {"tp": 2, "pp": 2},
    {"tp": 2, "all_reduce": "torch"},
    {"tp": 4, "all_reduce": "quick"},
    pytest.param({"tp": 4, "pp": 2, "all_reduce": "quick"}, marks=pytest.mark.full),  # eight processes
]
SAID = {
    None: ["all-reduce quick, codec none", "(cpu.toml)", "MiB a rank"],
    "torch": ["all-reduce torch (as asked)"],
    "quick": ["all-reduce quick, codec none"],
}


def tokens_of(generations: list[LLMOutput]) -> list[list[int]]:
    return [generation.token_ids for generation in generations]


def answers(llm: LLM, prompts: Any, params: Any = SHORT) -> list[list[int]]:
    return tokens_of(llm.generate(prompts, params, show_progress=False))


OneRank = Callable[..., list[list[int]]]


@pytest.fixture(scope="module")
def one_rank() -> Iterator[OneRank]:
    """The ``answers`` of one rank without a prefix cache, which all others are compared with: each is computed once."""
    known: dict[str, list[list[int]]] = {}
    with LLM(**OPTIONS, prefix_cache_mib=0) as llm:

        def ask(prompts: Any, params: Any = SHORT) -> list[list[int]]:
            asked = repr((prompts, params))
            if asked not in known:
                known[asked] = answers(llm, prompts, params)
            return known[asked]

        yield ask


@pytest.fixture(scope="module")
def llm(request: pytest.FixtureRequest) -> Iterator[LLM]:
    """One for all tests of its layout, which stand together."""
    with LLM(**{**OPTIONS, **request.param}) as llm:
        yield llm


@pytest.mark.parametrize("llm", LAYOUTS, ids=str, indirect=True)
def test_layouts_give_the_same_tokens(one_rank: OneRank, llm: LLM) -> None:
    expected = one_rank(PROMPTS)
    assert [len(tokens) for tokens in expected] == [16] * len(PROMPTS)
    assert answers(llm, PROMPTS) == expected


@pytest.mark.parametrize("llm", LAYOUTS, ids=str, indirect=True)
def test_layouts_hold_answers_to_a_grammar(one_rank: OneRank, llm: LLM) -> None:
    texts = ["the sum is 42", "the product is 7", "nothing"]
    held = SamplingParams(temperature=0, max_tokens=40, grammar=f"start: {' | '.join(map(json.dumps, texts))}")
    params = [held, SHORT, held, SHORT]
    generations = llm.generate(PROMPTS, params, show_progress=False)
    assert [one.text in texts for one in generations] == [True, False] * 2
    assert tokens_of(generations) == one_rank(PROMPTS, params)


def check_stages(llm: LLM, num_ranks: int, num_stages: int, words: list[str]) -> None:
    """What each stage has said at the start of how it sums."""
    reports = llm._engine.client.reports  # type: ignore[attr-defined]
    assert len(reports) == num_ranks + num_stages + 1
    for stage, line in enumerate(reports[num_ranks:-1]):
        assert [word for word in (f"stage {stage}: ", *words) if word not in line] == []


@pytest.mark.parametrize("llm", LAYOUTS, ids=str, indirect=True)
def test_each_stage_says_how_it_sums(llm: LLM, request: pytest.FixtureRequest) -> None:
    layout = request.node.callspec.params["llm"]
    tp, pp = layout.get("tp", 1), layout.get("pp", 1)
    check_stages(llm, tp * pp, pp if tp > 1 else 0, SAID[layout.get("all_reduce")])


def test_each_stage_says_that_its_sums_are_coded() -> None:
    with LLM(**OPTIONS, tp=2, all_reduce_codec="int8") as llm:
        assert len(answers(llm, PROMPTS[3:])[0]) == 16
        check_stages(llm, 2, 1, ["all-reduce quick, codec int8"])


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
        tokens = answers(llm, GROWING, MIXED)
        assert engine_stats(llm).preemptions == 0
    return tokens


@pytest.mark.parametrize("layout", [pytest.param({"pp": 1}, marks=pytest.mark.full), {"pp": 2}, {"tp": 2}], ids=str)
def test_preempted_requests_get_the_same_tokens(with_plenty_of_pages: list[list[int]], layout: dict[str, int]) -> None:
    with LLM(**{**OPTIONS, "max_model_len": 80, "page_size": 16, "num_pages": NUM_PAGES, **layout}) as llm:
        assert answers(llm, GROWING, MIXED) == with_plenty_of_pages
        wait_until(lambda: engine_stats(llm).free_pages == NUM_PAGES, "the pages to come back")
        stats = engine_stats(llm)
        assert stats.preemptions > 0
        assert (stats.free_slots, stats.num_preempted) == (stats.num_slots, 0)


def test_a_prompt_of_many_chunks_and_a_full_context() -> None:
    prompts = [[(7 * index) % 4000 for index in range(length)] for length in (511, 320, 64, 65, 1)]
    last, options = SamplingParams(temperature=0, max_tokens=1), {**OPTIONS, "max_model_len": 512}
    with LLM(**options, chunked_prefill_size=512) as llm:
        whole = answers(llm, prompts, last)
    with LLM(**options, chunked_prefill_size=64, pp=2) as llm:
        assert answers(llm, prompts, last) == whole
        with pytest.raises(ValueError, match=r"512 tokens.*511"):
            llm.generate([[5] * 512], last)
        with pytest.raises(ValueError, match=r"488 tokens.*25.*512"):
            llm.generate([[5] * 488], SamplingParams(max_tokens=25))
        (filled,) = llm.generate([[5] * 488], SamplingParams(max_tokens=24, ignore_eos=True))
        assert (len(filled.token_ids), filled.finish_reason) == (24, "length")


COMMON = [(11 * index) % 4000 for index in range(300)]  # four whole blocks of 64
SHARING = [[*COMMON, *([50 + index] * (100 + index))] for index in range(5)]
TALK = [(13 * index + 1) % 4000 for index in range(200)]


@contextmanager
def tokens_from_the_cache(llm: LLM) -> Iterator[list[int]]:
    """After the block, the list has to hold how many tokens came from the prefix cache in it."""
    before, expected = engine_stats(llm).cached_tokens, list[int]()
    yield expected
    wait_until(lambda: engine_stats(llm).cached_tokens - before == sum(expected), "the count of cached tokens")


@pytest.mark.parametrize("llm", SHARING_LAYOUTS, ids=str, indirect=True)
def test_a_shared_prefix_is_computed_twice_and_then_copied(one_rank: OneRank, llm: LLM) -> None:
    with tokens_from_the_cache(llm) as expected:
        one_by_one = [answers(llm, [prompt]) for prompt in SHARING]
        expected += [256] * 3
    assert [tokens for (tokens,) in one_by_one] == one_rank(SHARING)


@pytest.mark.parametrize("llm", SHARING_LAYOUTS, ids=str, indirect=True)
def test_a_conversation_goes_on_from_the_turn_before(one_rank: OneRank, llm: LLM) -> None:
    """Four turns; each prompt is all that was said before. Only the first answer is computed again in the next turn."""
    prompts, said, history = [], [], TALK
    with tokens_from_the_cache(llm) as expected:
        for turn in range(4):
            prompts.append(history)
            said += answers(llm, [history])
            history = [*history, *said[-1], *([70 + turn] * 9)]
        # 192 of 200; then the whole prompt and answer before, but for the last token, which was never fed.
        expected += [192, len(prompts[1]) + 15, len(prompts[2]) + 15]
    assert said == one_rank(prompts)
