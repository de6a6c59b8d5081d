"""Sends tensors from one stage's GPU to the next one's, and from the last to the first: no host in between.

The stages are a ring. Each owns a region of GPU memory, into which the stage before it writes messages (hidden states,
on the first stage tokens), and in which the stage behind acknowledges what it has read (``csrc/stage_mailbox``). Calls
enqueue kernels on the current stream and return. A receiving kernel waits for its message on the GPU, for ``timeout_s``
at most; what is launched behind it waits with it.
"""

from functools import partial
from typing import NoReturn

import torch
import torch.distributed as dist

from splitrank.comm.ballot import Ballot
from splitrank.comm.errors import CommunicationError
from splitrank.comm.native import Mailbox, MailboxCall, MailboxFailure, load_module
from splitrank.comm.position import MeshPosition
from splitrank.comm.shared_region import RegionOwner, join

DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.int32: 3, torch.int64: 4}


class DeviceLink(RegionOwner[Mailbox]):
    """This stage's end: receives from the stage before, sends to the next, at equal tensor ranks. Construction and
    ``close`` are collective over all ranks of ``group`` (None: of all groups).

    ``part_bytes`` is that of the largest tensor that this stage receives; a stage is ahead of the next one by
    ``max_ahead`` messages at most. If one rank cannot do its part, every rank raises ``CommunicationError``. Messages
    go by one stream, or by streams that events order.
    """

    def __init__(
        self,
        group: dist.ProcessGroup | None,
        position: MeshPosition,
        device: torch.device,
        timeout_s: float,
        part_bytes: int,
        max_ahead: int,
    ) -> None:
        self._stage, self._num_stages = position.pp_rank, position.pp_size
        self._ring = slice(position.tp_rank, None, position.tp_size)  # of all ranks, those with this tensor rank
        self._device, self._is_cuda = device, device.type == "cuda"
        self.timeout_s, self._timeout_ns = timeout_s, int(timeout_s * 1e9)
        self._where = f"stage {self._stage}: device link"
        self._ballot = Ballot(group, position.rank, position.world_size, timeout_s, "rank")
        self._poison: str | None = None
        make = partial(self._make, part_bytes, max_ahead)
        self._native = join(self._ballot, f"{self._where}: start", make, self._open)
        self.num_bytes = self._native.num_bytes

    def send(self, tensors: tuple[torch.Tensor, ...], step: int, plan_hash: str) -> None:
        """Enqueues the copy of one or two tensors of equal shape and dtype into the next stage's memory."""
        tensors = tuple(tensor.contiguous() for tensor in tensors)
        if not self._opened().send(**self._message(tensors, step, plan_hash)):
            self._fail()

    def receive(
        self, num_tensors: int, shape: tuple[int, ...], dtype: torch.dtype, step: int, plan_hash: str
    ) -> tuple[torch.Tensor, ...]:
        """``num_tensors`` of ``shape`` from the stage before: filled when the stream has come so far."""
        tensors = tuple(torch.empty(shape, dtype=dtype, device=self._device) for _ in range(num_tensors))
        if not self._opened().receive(**self._message(tensors, step, plan_hash)):
            self._fail()
        return tensors

    def _message(self, tensors: tuple[torch.Tensor, ...], step: int, plan_hash: str) -> MailboxCall:
        """Arguments of the native calls."""
        first = tensors[0]
        return {
            "parts": [tensor.data_ptr() for tensor in tensors],
            "part_bytes": first.nbytes,
            "kind": len(tensors) << 8 | DTYPE_CODES[first.dtype],
            "step": step,
            "plan_hash": int(plan_hash or "0", 16),
            "timeout_ns": self._timeout_ns,
            "stream": torch.cuda.current_stream(self._device).cuda_stream if self._is_cuda else 0,
        }

    def _make(self, part_bytes: int, max_ahead: int) -> tuple[Mailbox, bytes]:
        module = load_module(self._device.type)
        native = module.Mailbox(self._stage, self._num_stages, max_ahead, part_bytes, self._device.index or 0)
        return native, native.handle()

    def _open(self, native: Mailbox, handles: list[bytes]) -> None:
        native.open(handles[self._ring])

    def _fail(self, call: str = "") -> NoReturn:
        """The failure's record names the message itself."""
        assert self._native is not None
        if self._poison is None:
            self._poison = describe(self._native.failure(), self._stage, self.timeout_s)
        raise CommunicationError(self._poison)


def describe(failure: MailboxFailure | None, stage: int, timeout_s: float) -> str:
    """The record of ``stage`` in one line: who waited for whom, the step, what was expected and seen."""
    if failure is None:
        return f"stage {stage}: the device link was aborted"
    step, peer, seen = failure["expected"][0], failure["peer"], failure["seen"]
    if failure["kind"] == "aborted":
        who = "this stage" if peer == stage else f"stage {peer}"
        return f"stage {stage}, step {step}: {who} gave up on the device link"
    if failure["kind"] == "mismatch":
        fields = "(step, hash, tensors, bytes a tensor, dtype)"
        expected, found = _fields(failure["expected"]), _fields(failure["found"])
        return f"stage {stage} expected {expected} {fields} from stage {peer}, which sent {found}"
    what = "to make room for" if failure["waits_for_credit"] else "to send"
    waited = f"stage {stage} waited for stage {peer} {what} message {failure['sequence']}, step {step}"
    if failure["kind"] == "timeout":
        return f"{waited}: nothing came within {timeout_s:g} s (the last that was seen is {seen})"
    return f"{waited}: it is ahead (at {seen})"


def _fields(header: tuple[int, int, int, int]) -> tuple[int, str, int, int, str]:
    """The fields of a header for an error message."""
    step, plan_hash, part_bytes, kind = header
    names = {code: str(dtype).removeprefix("torch.") for dtype, code in DTYPE_CODES.items()}
    return step, f"{plan_hash:016x}", kind >> 8, part_bytes, names.get(kind & 0xFF, f"code {kind & 0xFF}")
