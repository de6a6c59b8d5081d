"""Sends sampled tokens to the ranks that embed them, without the engine in between; on GPUs without the hosts, too.

With one stage, they are written into the request table of each tensor rank. With more, the last stage sends the tokens
of every step to the first, which receives them when it computes, moves or releases one of their rows.
"""

from collections import deque
from dataclasses import dataclass

import torch

from splitrank.comm.mesh import Mesh
from splitrank.serving.protocol.messages import StepPlan
from splitrank.serving.rank.device_writes import copied_to
from splitrank.serving.rank.request_table import RequestTable


@dataclass(frozen=True)
class _Outstanding:
    step: int
    plan_hash: str
    slots: list[int]


class TokenFeedback:
    """Sends or receives the sampled tokens on one rank. ``max_in_flight`` steps may be planned ahead of their
    results."""

    def __init__(self, table: RequestTable, mesh: Mesh, max_in_flight: int) -> None:
        self._table, self._mesh, self._max_in_flight = table, mesh, max_in_flight
        position = mesh.position
        self._is_first = position.pp_rank == 0
        self._is_last = position.pp_rank == position.pp_size - 1
        self._outstanding: deque[_Outstanding] = deque()
        self._awaited: dict[int, int] = {}  # by slot: the step that samples its last token, while that is not received

    def spread(self, tokens: list[int] | None, slots: list[int], step: int, plan_hash: str) -> None:
        """Called on every rank after ``slots`` were sampled; only the sampling rank has ``tokens``. A row that failed
        has a negative token; its input is token 0 until the engine ends it."""
        if not slots:
            return
        if self._is_last:
            shared = self._share(tokens, len(slots)).clamp_min_(0)
            if self._is_first:
                self._table.put_tokens(slots, shared)
            else:
                self._mesh.feedback.send((shared.to("cpu"),), step, plan_hash)
        elif self._is_first:
            self._await(slots, step, plan_hash)

    def pass_on(self, slots: list[int], step: int, plan_hash: str) -> None:
        """With a device link, called on every rank that has launched a step which samples ``slots``: the last stage
        sends what its table will hold by then. No host waits."""
        if not slots:
            return
        if self._is_last:
            places = copied_to(self._table.device, slots, torch.int64)
            self._mesh.feedback.send((self._table.last_tokens.index_select(0, places),), step, plan_hash)
        elif self._is_first:
            self._await(slots, step, plan_hash)

    def _share(self, tokens: list[int] | None, count: int) -> torch.Tensor:
        """The same tokens [S] on every tensor rank of this stage. They are sent as float32, which every backend takes
        and which holds every id exactly (``check_tensor_parallel``); gathered columns are never coded."""
        device, size = self._table.device, self._mesh.position.tp_size
        if size == 1:
            return torch.tensor(tokens, dtype=torch.int64, device=device)
        own = torch.tensor([tokens or []], dtype=torch.float32, device=device)
        num_columns = (count, *[0] * (size - 1))
        return self._mesh.collectives.all_gather_columns(own, num_columns)[0].to(torch.int64)

    def _await(self, slots: list[int], step: int, plan_hash: str) -> None:
        self._outstanding.append(_Outstanding(step, plan_hash, slots))
        self._awaited.update(dict.fromkeys(slots, step))

    def take(self, plan: StepPlan) -> None:
        """Called before ``plan`` changes the table: receives the tokens of rows that it computes, moves or releases.

        Tokens of steps whose results the engine has are received, too, so that they do not pile up in the socket.
        """
        if not self._outstanding:
            return
        moved = [swap.slot for swap in plan.swap_out]
        released = [slot for request in plan.released if (slot := self._table.slot_of(request)) is not None]
        needed = (self._awaited.get(slot, -1) for slot in (*plan.decodes, *moved, *released))
        last = max(plan.step - self._max_in_flight, *needed, -1)
        while self._outstanding and self._outstanding[0].step <= last:
            self._receive(self._outstanding.popleft())

    def _receive(self, due: _Outstanding) -> None:
        # The device link carries the table's own numbers, and the table's device waits for them.
        dtype = self._table.last_tokens.dtype if self._mesh.device_link is not None else torch.int64
        [tokens] = self._mesh.feedback.receive(1, (len(due.slots),), dtype, due.step, due.plan_hash)
        self._table.put_tokens(due.slots, tokens.to(self._table.device))
        for slot in due.slots:
            if self._awaited[slot] == due.step:
                del self._awaited[slot]
