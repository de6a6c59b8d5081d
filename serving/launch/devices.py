"""Which device the ranks run on, and what memory it offers. Asked in a process of its own, which holds no memory of a
GPU afterwards."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import msgspec

from splitrank.serving.options.config import EngineConfig

_PROBE = [sys.executable, "-P", "-m", "splitrank.serving.rank.device_probe"]
_PROBE_LIMIT_S = 120.0
_DRIVERS = (Path("/dev/nvidiactl"), Path("/dev/kfd"))  # of NVIDIA and AMD; without one, torch is not asked


class Gpu(msgspec.Struct, frozen=True):
    """What the driver says of a GPU."""

    name: str
    total_bytes: int
    free_bytes: int


@dataclass(frozen=True)
class Devices:
    """The devices of this host's ranks: ``target`` "cpu", or "cuda" with the number and the memory of each rank's
    GPU."""

    target: str
    numbers: tuple[int, ...] = ()
    gpus: tuple[Gpu, ...] = ()  # rank by rank

    def budget_bytes(self, rank: int, fraction: float) -> int:
        """Bytes for weights, pages and states of a rank; ranks that share a GPU share them."""
        gpu = self.gpus[rank]
        return int(min(gpu.total_bytes * fraction, gpu.free_bytes) / self.numbers.count(self.numbers[rank]))


def choose_devices(config: EngineConfig) -> Devices:
    """``auto`` takes GPUs where there are enough for all ranks of this host, else the CPU; GPUs that are named must be
    there. ``ValueError`` in one line."""
    count = config.tp * config.pp // config.num_nodes
    named = f"devices {','.join(map(str, config.devices))}" if config.devices else "device cuda"
    if config.device == "cpu":
        if config.devices:
            raise ValueError(f"{named}: they are GPUs, and the device is cpu")
        return Devices("cpu")
    has_driver = config.device == "cuda" or any(driver.exists() for driver in _DRIVERS)
    gpus = probe() if has_driver else "no driver of a GPU is loaded"
    if isinstance(gpus, str):
        if config.device == "auto" and not config.devices:
            return Devices("cpu")
        raise ValueError(f"{named}: {gpus}")
    numbers = config.devices or _first(count, gpus, config.share_devices)
    if config.device == "auto" and not config.devices and len(numbers) < count:
        return Devices("cpu")
    _check(numbers, count, gpus, config.share_devices)
    return Devices("cuda", numbers, tuple(gpus[number] for number in numbers))


def _first(count: int, gpus: list[Gpu], share: bool) -> tuple[int, ...]:
    """The first GPUs, one a rank; if they may be shared, round and round."""
    return tuple(rank % len(gpus) for rank in range(count)) if share else tuple(range(min(count, len(gpus))))


def _check(numbers: tuple[int, ...], count: int, gpus: list[Gpu], share: bool) -> None:
    if len(numbers) != count:
        raise ValueError(f"{count} ranks need {count} GPUs, not {len(numbers)}: give --devices, fewer ranks, or cpu")
    for number in numbers:
        if number >= len(gpus):
            raise ValueError(f"devices: GPU {number} does not exist; torch finds {len(gpus)}, counted from 0")
    if len(set(numbers)) < len(numbers) and not share:
        raise ValueError(f"devices {','.join(map(str, numbers))}: a GPU is named twice; --share-devices allows it")


def probe() -> list[Gpu] | str:
    """Every GPU that torch finds, or why there is none."""
    try:
        found = subprocess.run(_PROBE, capture_output=True, text=True, timeout=_PROBE_LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        return f"torch did not answer within {_PROBE_LIMIT_S:g} s"
    if found.returncode:
        lines = found.stderr.strip().splitlines()
        return lines[-1] if lines else f"the probe ended with code {found.returncode}"
    return msgspec.json.decode(found.stdout, type=list[Gpu])
