"""Which tokens the first stage waits for, and when: with hand-made links in place of the mesh's."""

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import torch

from splitrank.comm.collectives import SingleRank
from splitrank.comm.position import MeshPosition
from splitrank.serving.protocol.messages import StepPlan, SwapPlan
from splitrank.serving.rank.request_table import RequestTable
from splitrank.serving.rank.token_feedback import TokenFeedback
from tests.support.stage_runner import admitted, make_table


@dataclass
class FakeLink:
    messages: deque[tuple[int, str, list[int]]] = field(default_factory=deque)

    def send(self, tensors: tuple[torch.Tensor, ...], step: int, plan_hash: str) -> None:
        self.messages.append((step, plan_hash, tensors[0].tolist()))

    def receive(
        self, num_tensors: int, shape: tuple[int, ...], dtype: torch.dtype, step: int, plan_hash: str
    ) -> tuple[torch.Tensor, ...]:
        assert self.messages, f"waits for the tokens of step {step}, which are not there"
        seen_step, seen_hash, tokens = self.messages.popleft()
        assert (seen_step, seen_hash, len(tokens)) == (step, plan_hash, *shape)
        assert (num_tensors, dtype) == (1, torch.int64)
        return (torch.tensor(tokens),)


@dataclass
class FakeMesh:
    position: MeshPosition
    feedback: FakeLink
    collectives: Any = field(default_factory=SingleRank)
    device_link: None = None


def stage(pp_rank: int, pp_size: int, link: FakeLink, max_in_flight: int = 3) -> tuple[RequestTable, TokenFeedback]:
    """With requests 50 to 55 in slots 0 to 5."""
    table = make_table(num_slots=6)
    for slot in range(6):
        table.admit(admitted(50 + slot, slot, [1]), None)
    mesh: Any = FakeMesh(MeshPosition(pp_rank, pp_size, 0, 1), link)
    return table, TokenFeedback(table, mesh, max_in_flight)


def test_one_stage_writes_its_tokens_and_a_failed_row_feeds_token_zero() -> None:
    table, feedback = stage(0, 1, FakeLink())
    feedback.spread([7, -1], [4, 2], 0, "a")
    assert table.last_tokens.tolist() == [0, 0, 0, 0, 7, 0]


def test_the_first_stage_waits_only_for_what_a_plan_needs() -> None:
    link = FakeLink()
    table, first = stage(0, 2, link)
    _, last = stage(1, 2, link)
    for step, (tokens, slots) in enumerate([([10, 11], [0, 1]), ([12], [2]), ([13], [3])]):
        first.take(StepPlan(step, ""))
        first.spread(None, slots, step, f"hash {step}")
        if step < 2:  # the third is still being computed
            last.spread(tokens, slots, step, f"hash {step}")
    first.take(StepPlan(3, "", decodes=[4]))  # but the oldest result is back, by now
    assert (table.last_tokens.tolist(), len(link.messages)) == ([10, 11, 0, 0, 0, 0], 1)
    first.take(StepPlan(3, "", decodes=[2]))
    assert table.last_tokens.tolist() == [10, 11, 12, 0, 0, 0]
    last.spread([13], [3], 2, "hash 2")
    first.take(StepPlan(3, "", swap_out=[SwapPlan(53, 3)]))
    assert table.last_tokens.tolist() == [10, 11, 12, 13, 0, 0]


def test_a_slot_that_is_handed_on_gets_no_token_of_the_request_before() -> None:
    link = FakeLink()
    table, first = stage(0, 2, link)
    _, last = stage(1, 2, link)
    first.spread(None, [5], 0, "a")
    last.spread([99], [5], 0, "a")
    first.take(StepPlan(1, "", released=[55]))
    assert not link.messages
    assert table.last_tokens[5] == 99  # taken before the row goes; the next request's row begins anew


def test_a_step_without_sampled_rows_sends_nothing() -> None:
    link = FakeLink()
    _, first = stage(0, 2, link)
    _, last = stage(1, 2, link)
    first.spread(None, [], 0, "a")
    last.spread([], [], 0, "a")
    first.take(StepPlan(9, ""))
    assert not link.messages


def test_a_stage_in_the_middle_neither_sends_nor_waits() -> None:
    link = FakeLink()
    _, middle = stage(1, 3, link)
    middle.spread(None, [1, 2], 0, "a")
    middle.take(StepPlan(9, "", decodes=[1]))
    assert not link.messages
