"""A request whose grammar ranks compile waits beside the queue: others go on, and it is admitted when all have."""

import asyncio

import pytest

from splitrank.serving.engine.grammar_watch import GrammarWatch
from splitrank.serving.launch.engine_client import EngineDeadError
from splitrank.serving.protocol.messages import AddRequest, GrammarCompiled
from splitrank.serving.protocol.sampling_params import SamplingParams
from tests.serving.engine.test_engine import engine, generate, run, tokens, until
from tests.support.fake_model import expected_tokens, small_spec
from tests.support.scheduler_loop import Loop

NEVER = {"grammar": "never", "max_tokens": 3}


def test_it_joins_behind_those_that_came_meanwhile() -> None:
    loop = Loop(small_spec(max_running_requests=1))
    loop.scheduler.add(AddRequest("held", [1, 2], SamplingParams(max_tokens=2)), held=True)
    loop.add("first", [3, 4], max_tokens=2)
    plan = loop.plan()
    assert plan is not None
    assert [one.prompt_token_ids for one in plan.admitted] == [[3, 4]]
    loop.add("second", [5, 6], max_tokens=2)
    assert loop.scheduler.stats().num_waiting == 2
    loop.scheduler.join("held")
    loop.scheduler.check()
    loop.run()
    assert list(loop.ended) == ["first", "second", "held"]


def test_one_that_is_aborted_meanwhile_never_joins() -> None:
    loop = Loop(small_spec())
    loop.scheduler.add(AddRequest("held", [1, 2], SamplingParams(max_tokens=2)), held=True)
    loop.abort("held")
    assert loop.ended["held"].finish_reason == "abort"
    loop.scheduler.join("held")
    assert loop.scheduler.is_idle
    assert loop.plan() is None


@pytest.mark.parametrize(("device", "ranks"), [("cpu", [2]), ("cuda", [2, 3])])
def test_it_waits_for_every_rank_that_draws(device: str, ranks: list[int]) -> None:
    watch = GrammarWatch(small_spec(pp_size=2, tp_size=2, device=device, step_timeout_s=5.0))
    assert list(watch.ranks) == ranks
    watch.asked("a", 10.0)
    assert watch.find_overdue(14.9) is None
    late = ", ".join(f"rank {rank} (stage 1, tp {rank - 2})" for rank in ranks)
    assert watch.find_overdue(15.1) == f"the grammar of request a is not compiled after 5 s: {late}"
    found = [watch.is_compiled(GrammarCompiled(rank, "a"), 15.2) for rank in ranks]
    assert found == [rank == ranks[-1] for rank in ranks]
    assert watch.find_overdue(99.0) is None


def test_a_long_queue_of_grammars_is_not_late() -> None:
    watch = GrammarWatch(small_spec(step_timeout_s=5.0))
    for name in "abc":
        watch.asked(name, 10.0)
    for now, name in ((14.0, "a"), (18.0, "b")):
        assert watch.find_overdue(now) is None
        assert watch.is_compiled(GrammarCompiled(0, name), now)
    assert watch.find_overdue(22.9) is None
    assert "request c " in str(watch.find_overdue(23.1))


def test_others_are_answered_while_a_grammar_is_compiled() -> None:
    async def test() -> None:
        async with engine(pp_size=2, partition=(1, 1)) as client:
            held = asyncio.create_task(generate(client, [7, 8], **NEVER))
            await until(lambda: client.stats is not None and client.stats.num_waiting == 1)
            others = await asyncio.gather(
                generate(client, [1, 2], max_tokens=4), generate(client, [5, 6], max_tokens=4, grammar="at once")
            )
            for prompt, outputs in zip(([1, 2], [5, 6]), others, strict=True):
                assert tokens(outputs) == expected_tokens(prompt, 4, 50)
            assert not held.done()
            held.cancel()
            await until(lambda: client.stats is not None and client.stats.num_waiting == 0)

    run(test)


def test_a_rank_that_never_compiles_is_named() -> None:
    async def test() -> None:
        async with engine(step_timeout_s=0.5) as client:
            with pytest.raises(EngineDeadError, match=r"grammar of request \S+ is not compiled after 0.5 s: rank 0"):
                await generate(client, [7, 8], **NEVER)

    run(test)
