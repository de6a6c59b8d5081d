"""The quick all-reduce on tensors. All ranks vote when it is made; every call is checked; all close it together.

Sums are ``codec(sum of codec(x_r))`` (one-shot: ``sum of codec(x_r)``) in float32 along one fixed tree over the ranks,
((0+1)+(2+3))+..., rounded once. So the bits are the same on every rank and target, however a message is cut. A wait for
peers ends after ``timeout_s``.
"""

from dataclasses import dataclass
from functools import partial
from typing import NoReturn

import torch
import torch.distributed as dist

from splitrank.comm.ballot import Ballot
from splitrank.comm.errors import CommunicationError
from splitrank.comm.failure_text import describe
from splitrank.comm.native import ALGORITHM_CODES, CODEC_CODES, Communicator, load_module
from splitrank.comm.selection import WORLD_SIZES
from splitrank.comm.shared_region import RegionOwner, join

DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # csrc/quick_reduce/call.h
ALIGNMENT = 16


@dataclass(frozen=True)
class RegionShape:
    """A rank's exchange memory: ``num_slots`` x 3 places x peers x ``segment_bytes``, for messages of any size."""

    num_slots: int
    segment_bytes: int


# One host thread handles all slots in turn, so few large ones are best. Accelerators' modules have shapes of their own.
HOST_SHAPE = RegionShape(4, 128 * 2**10)


class QuickAllReduce(RegionOwner[Communicator]):
    """One stage's communicator on this rank. Construction and ``close`` are collective over ``group`` (gloo).

    If one rank cannot do its part, every rank raises ``CommunicationError``, and nothing is left behind.
    """

    def __init__(
        self,
        group: dist.ProcessGroup | None,
        rank: int,
        world_size: int,
        timeout_s: float,
        device: torch.device | None = None,
        shape: RegionShape | None = None,
    ) -> None:
        if world_size not in (1, *WORLD_SIZES):
            raise ValueError(f"the quick all-reduce sums over 1, 2, 4 or 8 ranks, not over {world_size}")
        self.rank, self.world_size, self.timeout_s = rank, world_size, timeout_s
        self.device = _with_index(device or torch.device("cpu"))
        self.num_bytes = 0
        self._timeout_ns = int(timeout_s * 1e9)
        self._where = f"tensor rank {rank} of {world_size}: quick all-reduce"
        self._is_cuda = self.device.type == "cuda"
        self._launch: dict[str, bool] = {}  # how an accelerator's calls are launched; known when all have joined
        self._native = None
        self._poison: str | None = None
        if world_size > 1:
            assert group is not None, "several ranks vote through a group"
            self._ballot = Ballot(group, rank, world_size, timeout_s)
            self._native = join(self._ballot, f"{self._where}: start", partial(self._make, shape), self._open)
            self.num_bytes = self._native.num_bytes

    def all_reduce(
        self, input: torch.Tensor, output: torch.Tensor | None = None, algorithm: str = "two-shot", codec: str = "none"
    ) -> torch.Tensor:
        """Sums ``input`` over the ranks into ``output`` (or in place) and returns it; an empty tensor is its own sum.

        On an accelerator the call is enqueued on the current stream, and ``check`` raises its failure. Raises
        ``ValueError`` for an unsupported tensor or name; ``CommunicationError`` if a peer fails or makes another call.
        """
        output = input if output is None else output
        address, out_address = input.data_ptr(), output.data_ptr()
        dtype = DTYPE_CODES.get(input.dtype)
        if dtype is None or not self._is_fit(input, address):
            raise ValueError(self._refusal(input))
        if output is not input:
            self._check_output(input, output, address, out_address)
        if algorithm not in ALGORITHM_CODES or codec not in CODEC_CODES:
            raise ValueError(self._unknown(algorithm, codec))
        num_elements = input.numel()
        if self.world_size == 1 or num_elements == 0:
            return output if output is input else output.copy_(input)
        if not self._opened().all_reduce(
            address,
            out_address,
            num_elements,
            dtype,
            CODEC_CODES[codec],
            ALGORITHM_CODES[algorithm],
            self._timeout_ns,
            torch.cuda.current_stream(self.device).cuda_stream if self._is_cuda else 0,
            **self._launch,
        ):
            self._fail(
                f" of {num_elements:,} {input.dtype} elements ({algorithm}, codec {codec})".replace("torch.", "")
            )
        return output

    def tagged_bytes(self, dtype: torch.dtype, codec: str) -> int:
        """Bytes of the largest tagged message; 0 on a host, which has no tagged algorithm."""
        if self._native is None or not self._is_cuda:
            return 0
        return self._native.tagged_capacity(DTYPE_CODES[dtype], CODEC_CODES[codec]) * dtype.itemsize

    def _make(self, shape: RegionShape | None) -> tuple[Communicator, bytes]:
        """The own region, and its description for the peers: module; slots and device; handle."""
        module = load_module(self.device.type)
        if shape is None:
            shape = RegionShape(*module.default_shape(self.world_size)) if self._is_cuda else HOST_SHAPE
        arguments = (self.rank, self.world_size, shape.num_slots, shape.segment_bytes, self.device.index or 0)
        native = module.Communicator(*arguments)
        kind = f"protocol {module.PROTOCOL} on {module.TARGET} segments {shape.segment_bytes}"
        own = f"{native.max_slots()} {_device_name(self.device)}"
        return native, f"{kind}\n{own}\n".encode() + native.handle()

    def _open(self, native: Communicator, payloads: list[bytes]) -> None:
        """Maps the peers' regions, if all are of one kind, with the slots that all have."""
        kinds, owns, handles = zip(*(payload.split(b"\n", 2) for payload in payloads), strict=True)
        for rank, kind in enumerate(kinds):
            if kind != kinds[self.rank]:
                raise ValueError(f"it has {kinds[self.rank].decode()}, tensor rank {rank} has {kind.decode()}")
        slots, devices = zip(*(own.decode().split(" ", 1) for own in owns), strict=True)
        native.open(list(handles), min(map(int, slots)))
        if self._is_cuda:
            # Kernels that wait behind this rank's call take room that a peer on the same GPU may need for its own.
            self._launch["starts_early"] = len(set(devices)) == self.world_size

    def _is_fit(self, tensor: torch.Tensor, address: int) -> bool:
        return tensor.device == self.device and tensor.is_contiguous() and address % ALIGNMENT == 0

    def _refusal(self, tensor: torch.Tensor) -> str:
        if tensor.dtype not in DTYPE_CODES:
            return f"{self._where} takes float32, bfloat16 and float16, not {tensor.dtype}"
        if tensor.device != self.device:
            return f"{self._where} was made for {self.device}, the tensor is on {tensor.device}"
        if not tensor.is_contiguous():
            layout = f"shape {list(tensor.shape)} with strides {list(tensor.stride())}"
            return f"{self._where} takes contiguous tensors, not {layout}"
        past = tensor.data_ptr() % ALIGNMENT
        return f"{self._where} takes tensors aligned to {ALIGNMENT} bytes, this one starts {past} bytes behind"

    def _check_output(self, input: torch.Tensor, output: torch.Tensor, address: int, out_address: int) -> None:
        if (output.dtype, output.shape) != (input.dtype, input.shape):
            found = f"{output.dtype} {list(output.shape)}"
            raise ValueError(f"{self._where}: the output is {found}, the input {input.dtype} {list(input.shape)}")
        if not self._is_fit(output, out_address):
            raise ValueError(self._refusal(output))
        distance = abs(address - out_address)
        if 0 < distance < input.nbytes:
            raise ValueError(f"{self._where}: input and output overlap, {distance} bytes apart, {input.nbytes} long")

    def _unknown(self, algorithm: str, codec: str) -> str:
        names = f"algorithm {algorithm!r} and codec {codec!r}"
        return f"{self._where} knows {', '.join(ALGORITHM_CODES)} and {', '.join(CODEC_CODES)}, not {names}"

    def _fail(self, call: str = "") -> NoReturn:
        assert self._native is not None
        if self._poison is None:
            self._poison = describe(self._native.failure(), self.rank, self.timeout_s)
            raise CommunicationError(f"{self._where}{call}: {self._poison}")
        raise CommunicationError(f"{self._where}{call}: an earlier call failed: {self._poison}")


def _device_name(device: torch.device) -> str:
    """The same for two ranks only if they share the device."""
    return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else "host"


def _with_index(device: torch.device) -> torch.device:
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device
