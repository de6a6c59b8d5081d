"""``LLM``: with a scripted model in process, and with real engine and rank processes (``fake_rank``)."""

import asyncio
import gc
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from splitrank import LLM
from splitrank.serving.launch.engine_client import EngineClient, EngineDeadError, EngineStartError
from splitrank.serving.offline import llm as llm_module
from splitrank.serving.offline.llm import LLMOutput, RequestError
from splitrank.serving.options.config import EngineConfig
from splitrank.serving.protocol.messages import LaunchSpec, RequestOutput
from splitrank.serving.protocol.sampling_params import SamplingParams
from splitrank.serving.text.text_engine import PreparedModel, TextEngine
from tests.support.fake_model import expected_tokens
from tests.support.fake_rank import DIE
from tests.support.limits import ANSWER_S, PROGRAM_S, scaled
from tests.support.offline_fakes import VOCAB_SIZE, Script, ScriptedEngines, echo, prepared_model


class Scripted:
    """Makes ``LLM(...)`` start a scripted engine."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.prepared = prepared_model(folder)
        self.engines = ScriptedEngines()
        self.configs: list[EngineConfig] = []
        monkeypatch.setattr(llm_module, "start_text_engine", self._start)

    async def _start(self, config: EngineConfig) -> TextEngine:
        self.configs.append(config)
        return await self.engines.start(self.prepared)

    def start(self, script: Script = echo, **options: object) -> LLM:
        self.engines.script = script
        return LLM(**options)  # type: ignore[arg-type]


@pytest.fixture
def scripted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scripted:
    return Scripted(tmp_path, monkeypatch)


def texts(generations: list[LLMOutput]) -> list[str]:
    return [generation.text for generation in generations]


PARAMS = SamplingParams(max_tokens=200)


def test_answers_come_in_the_order_of_the_prompts(scripted: Scripted) -> None:
    def slow_first(prompt: str) -> str:
        return prompt + "!" * (50 - int(prompt))

    with scripted.start(slow_first, max_running_requests=4) as llm:
        generations = llm.generate([str(index) for index in range(40)], PARAMS)
    assert texts(generations) == [slow_first(str(index)) for index in range(40)]
    client = scripted.engines.clients[0]
    assert (client.most_open, client.num_open, client.num_closed) == (8, 0, 1)


def test_a_generation_holds_everything(scripted: Scripted) -> None:
    with scripted.start() as llm:
        one = llm.generate("hello you", SamplingParams(max_tokens=100, logprobs=0))[0]
        assert one.text == "HELLO YOU"
        assert one.prompt_token_ids == llm.tokenizer.encode("hello you")
        assert one.token_ids == llm.tokenizer.encode("HELLO YOU")
        assert one.finish_reason == "stop"
        assert one.logprobs is not None
        assert len(one.logprobs) == len(one.token_ids)
        assert llm.generate("hello you", SamplingParams(max_tokens=2))[0].finish_reason == "length"
        stopped = llm.generate("hello you", SamplingParams(max_tokens=99, stop=("O ",)))[0]
        assert (stopped.text, stopped.finish_reason, stopped.stop_reason) == ("HELL", "stop", "O ")


def test_token_ids_defaults_and_params_for_each(scripted: Scripted) -> None:
    with scripted.start(lambda _: "A" * 99) as llm:
        assert [len(one.token_ids) for one in llm.generate([[1, 2], [3]])] == [16, 16]
        each = [SamplingParams(max_tokens=number) for number in (3, 5)]
        assert [len(one.token_ids) for one in llm.generate(["a", "b"], each)] == [3, 5]
        assert llm.generate([]) == []


HI = [71, 72]  # h, i
PROMPT_FORMS: list[tuple[Any, list[str]]] = [
    ({"prompt": "hi"}, ["hi"]),
    ([{"prompt": "hi"}, "you"], ["hi", "you"]),
    ({"prompt_token_ids": HI}, ["hi"]),
    ([{"prompt_token_ids": tuple(HI)}, {"prompt": "you"}], ["hi", "you"]),
    (("hi", "you"), ["hi", "you"]),
    ([tuple(HI)], ["hi"]),
    ([numpy.array(HI)], ["hi"]),
    (numpy.array([HI, HI]), ["hi", "hi"]),
    ([[numpy.int64(HI[0]), numpy.int32(HI[1])]], ["hi"]),
    ([torch.tensor(HI)], ["hi"]),
    ((text for text in ("hi", "you")), ["hi", "you"]),
]


@pytest.mark.parametrize(("given", "asked"), PROMPT_FORMS, ids=str)
def test_prompts_as_other_engines_take_them(scripted: Scripted, given: Any, asked: list[str]) -> None:
    with scripted.start() as llm:
        generations = llm.generate(given, PARAMS)
        assert scripted.engines.clients[0].prompts == asked
        assert all(type(token) is int for one in generations for token in one.prompt_token_ids)


def test_chat_one_and_several(scripted: Scripted) -> None:
    hello = [{"role": "user", "content": "hello"}]
    with scripted.start() as llm:
        assert texts(llm.chat(hello)) == ["USER\nHELLO\nASSISTANT\n<THINK>\n"]
        several = llm.chat(
            [hello, [{"role": "user", "content": "you"}]], chat_template_kwargs={"enable_thinking": False}
        )
        assert several[1].text == "USER\nYOU\nASSISTANT\n<THINK>\n\n</THINK>\n\n"
        assert len(several[0].token_ids) > 16
        for variables in ({"messages": []}, {"enable_thinking": "no"}):
            with pytest.raises(ValueError, match="chat_template_kwargs"):
                llm.chat(hello, chat_template_kwargs=variables)


def test_options_reach_the_config(scripted: Scripted) -> None:
    scripted.start(model="folder", pp=2, pp_partition=[1, 3], dtype="float32").close()
    config = scripted.configs[0]
    assert (config.model, config.tp, config.pp, config.pp_partition) == ("folder", 1, 2, (1, 3))


def test_unknown_keywords_and_bad_values(scripted: Scripted) -> None:
    with pytest.raises(TypeError, match="'max_running_request'; did you mean max_running_requests"):
        LLM(max_running_request=3)
    with pytest.raises(TypeError, match="'zzz'; known are model, "):
        LLM(zzz=3)
    with pytest.raises(ValueError, match="tp must be at least 1"):
        LLM(tp=0)
    with pytest.raises(ValueError, match="model is empty, as from an unset variable"):
        LLM(model="")
    with pytest.raises(ValueError, match=r"seed must be of type int, not 1\.0"):
        LLM(seed=1.0)
    assert scripted.configs == []


def test_the_model_may_be_a_path_or_left_out(scripted: Scripted) -> None:
    scripted.start(model=Path("a") / "folder").close()
    scripted.start(model=None).close()
    scripted.start().close()
    assert [config.model for config in scripted.configs] == ["a/folder", "", ""]


@pytest.mark.parametrize(
    ("prompts", "params", "reason"),
    [
        ([1, 2], None, "prompt 0 is neither text nor a list"),
        (["a", [1, "b"]], None, "prompt 1 is neither"),
        (["a", [VOCAB_SIZE]], None, "prompt 1: token id 1000 is not in"),
        (["a", ""], None, "prompt 1 has 0 tokens"),
        (["a", "b c " * 2000], None, "prompt 1 has 8000 tokens; the context holds 1 to 4095"),
        (["a"], SamplingParams(max_tokens=4096), "prompt 0 has 1 tokens and max_tokens is 4096"),
        (["a", "b"], [PARAMS], "2 prompts, but params for 1"),
        ({"text": "hi"}, None, "prompt 0: unknown key 'text'; a prompt's keys are prompt and prompt_token_ids"),
        (["a", {"prompt": "a", "cache_salt": 1}], None, "prompt 1: unknown key 'cache_salt'"),
        ({"prompt": "a", "prompt_token_ids": [1]}, None, "prompt 0 must have either prompt or prompt_token_ids"),
        ([{}], None, "prompt 0 must have either prompt or prompt_token_ids"),
        ({"prompt": [1, 2]}, None, r"prompt 0: prompt must be of type str, not \[1, 2\]"),
        ({"prompt_token_ids": "a"}, None, "prompt 0: prompt_token_ids must be a list of int, not 'a'"),
        ([[1, True]], None, "prompt 0 is neither"),
        ([[1.0]], None, "prompt 0 is neither"),
        ([None], None, "prompt 0 is neither"),
        ([b"hi"], None, "prompt 0 is neither"),
        (["a", "\ud800"], None, r"prompt 1 must be text without lone surrogates, not '\\ud800'"),
        (7, None, "prompts must be a list of them or one, not 7"),
        (["a"], {"max_tokens": 5}, "params must be SamplingParams, one or a list of them, not {'max_tokens': 5}"),
        (["a"], [{"max_tokens": 5}], "params 0 must be SamplingParams, not {'max_tokens': 5}"),
        (["a"], 5, "params must be SamplingParams, one or a list of them, not 5"),
        (["a"], SamplingParams(stop_token_ids=(1000,)), "stop_token_ids of prompt 0"),
        (["a"], SamplingParams(logit_bias={1000: 1.0}), "logit_bias of prompt 0"),
    ],
)
def test_mistakes_are_refused_before_anything_runs(scripted: Scripted, prompts: Any, params: Any, reason: str) -> None:
    with scripted.start() as llm:
        with pytest.raises(ValueError, match=reason):
            llm.generate(prompts, params)
        assert scripted.engines.clients[0].prompts == []


def test_a_program_repeats_itself_and_its_calls_do_not(scripted: Scripted) -> None:
    def program(**options: int) -> list[int | None]:
        with scripted.start(**options) as llm:
            for _ in range(2):
                llm.generate(["a", "a"], PARAMS)
        return [params.seed for params in scripted.engines.clients[-1].params]

    once, again, other = program(), program(), program(seed=1)
    assert once == again
    assert len({None, *once, *other}) == 1 + 4 + 4


def test_a_failed_request_is_named_and_the_others_are_cancelled(scripted: Scripted) -> None:
    def refusing(prompt: str) -> str | RequestOutput:
        return RequestOutput("r", [], None, "error", None, "too much", "queue_full") if prompt == "3" else "A" * 500

    with scripted.start(refusing) as llm:
        with pytest.raises(RequestError, match="prompt 3 of 6: too much"):
            llm.generate([str(index) for index in range(6)], SamplingParams(max_tokens=1000))
        client = scripted.engines.clients[0]
        assert (client.num_open, client.num_broken_off) == (0, 6)
        assert texts(llm.generate("7", SamplingParams(max_tokens=3))) == ["AAA"]  # it goes on


def test_a_running_loop_in_the_callers_thread_does_not_matter(scripted: Scripted) -> None:
    async def notebook_cell() -> list[str]:
        with scripted.start() as llm:
            return texts(llm.generate(["a", "b"], PARAMS))

    assert asyncio.run(notebook_cell()) == ["A", "B"]


def test_two_threads_at_once(scripted: Scripted) -> None:
    answers: dict[str, list[str]] = {}
    with scripted.start() as llm:

        def ask(name: str) -> None:
            answers[name] = texts(llm.generate([name + str(index) for index in range(50)], PARAMS))

        threads = [threading.Thread(target=ask, args=(name,)) for name in ("x", "y")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(scaled(ANSWER_S))
    assert answers == {name.lower(): [f"{name}{index}" for index in range(50)] for name in ("X", "Y")}


def test_close_twice_and_use_after_close(scripted: Scripted) -> None:
    llm = scripted.start()
    llm.close()
    llm.close()
    assert scripted.engines.clients[0].num_closed == 1
    with pytest.raises(RuntimeError, match="closed"):
        llm.generate("a")


def test_a_dropped_llm_is_closed(scripted: Scripted) -> None:
    llm = scripted.start()
    del llm
    gc.collect()
    assert scripted.engines.clients[0].num_closed == 1


def test_a_dropped_llm_that_its_own_loop_thread_collects_is_closed(scripted: Scripted) -> None:
    async def collect() -> None:
        gc.collect()

    llm = scripted.start()
    runner = llm._runner
    cycle: list[object] = [llm]
    cycle.append(cycle)
    gc.disable()
    try:
        del llm, cycle
        runner.run(collect(), 20)
        runner.thread.join(scaled(ANSWER_S))
    finally:
        gc.enable()
    assert scripted.engines.clients[0].num_closed == 1


def test_no_more_requests_are_open_than_the_engine_accepts(scripted: Scripted, tmp_path: Path) -> None:
    scripted.prepared = prepared_model(tmp_path, max_running_requests=8, max_queued_requests=2)
    with scripted.start() as llm:
        llm.generate([f"prompt {index}" for index in range(50)], PARAMS)
    assert scripted.engines.clients[0].most_open == 10


# ------------------------------------------------------------------ real processes


@pytest.fixture
def processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[EngineClient]]:
    """Makes ``LLM(pp=…)`` start fake ranks; the clients it started."""
    clients: list[EngineClient] = []

    async def start(config: EngineConfig) -> TextEngine:
        prepared = prepared_model(tmp_path, tp_size=config.tp, pp_size=config.pp)
        spec: LaunchSpec = prepared.spec
        clients.append(await EngineClient.start(spec, "tests.support.fake_rank"))
        return TextEngine(clients[-1], prepared.tokenizer, prepared.info)

    monkeypatch.setattr(llm_module, "start_text_engine", start)
    yield clients
    assert all(client._children.running() == [] for client in clients)


def test_ranks_answer_what_they_should(processes: list[EngineClient]) -> None:
    prompts = [[index, 2, 3] for index in range(30)]
    with LLM(pp=2, max_running_requests=8) as llm:
        generations = llm.generate(prompts, SamplingParams(max_tokens=20))
    expected = [expected_tokens(prompt, 20, VOCAB_SIZE) for prompt in prompts]
    assert [generation.token_ids for generation in generations] == expected
    assert processes[0]._children.running() == []


def test_a_killed_rank_is_an_error_that_names_it(processes: list[EngineClient]) -> None:
    with LLM(pp=2) as llm:
        with pytest.raises(RequestError, match=r"prompt \d of 3: rank 1 .*signal 9") as raised:
            llm.generate([[1, 2], [DIE, 1], [3, 4]], SamplingParams(max_tokens=1000))
        assert isinstance(raised.value.__cause__, EngineDeadError)
        with pytest.raises(RequestError, match="signal 9"):
            llm.generate("again")


SCRIPT = """
import sys
from pathlib import Path
import splitrank.serving.offline.llm as llm_module
from splitrank.serving.launch.engine_client import EngineClient
from splitrank.serving.protocol.sampling_params import SamplingParams
from splitrank.serving.text.text_engine import TextEngine
from tests.support.offline_fakes import prepared_model

async def start(config):
    prepared = prepared_model(Path(sys.argv[1]))
    client = await EngineClient.start(prepared.spec, "tests.support.fake_rank")
    print(*client.pids.values(), client._spec.run_dir, flush=True)
    return TextEngine(client, prepared.tokenizer, prepared.info)

llm_module.start_text_engine = start
llm = llm_module.LLM()
print(len(llm.generate([[1, 2]], SamplingParams(max_tokens=5), show_progress=False)[0].token_ids))
"""


def test_a_script_that_never_closes_leaves_nothing_behind(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=scaled(PROGRAM_S),
    )
    assert (done.returncode, done.stderr) == (0, "")
    first, second = done.stdout.splitlines()
    assert second == "5"
    *pids, run_dir = first.split()
    assert len(pids) == 2
    assert not any(Path("/proc", pid).exists() for pid in pids)
    assert not Path(run_dir).exists()


def test_a_start_that_fails_leaves_no_thread(scripted: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    async def start(_: EngineConfig) -> TextEngine:
        raise EngineStartError("rank 0: load: no memory")

    monkeypatch.setattr(llm_module, "start_text_engine", start)
    before = threading.active_count()
    with pytest.raises(EngineStartError, match="no memory"):
        LLM()
    assert threading.active_count() == before


def test_an_interrupt_during_the_start_waits_for_its_clean_up(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []

    async def start(_: EngineConfig) -> PreparedModel:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.2)
            ended.append("cleaned up")
        raise AssertionError

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(llm_module, "start_text_engine", start)
    monkeypatch.setattr("concurrent.futures.Future.result", _first_time(interrupted))
    with pytest.raises(KeyboardInterrupt):
        LLM()
    assert ended == ["cleaned up"]


def _first_time(replacement: object) -> object:
    """A stand-in for ``Future.result`` that calls ``replacement`` once, and the real one after that."""
    from concurrent.futures import Future

    real, calls = Future.result, iter([replacement])
    return lambda self, timeout=None: next(calls, real)(self, timeout)  # type: ignore[operator]
