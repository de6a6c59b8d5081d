"""The probe's answers for drivers as they may be; NVIDIA's library is replaced by one that says what a test wants."""

import ctypes
from typing import Any

import pytest

from splitrank.models.memory import GIB
from splitrank.serving.rank import device_probe
from splitrank.serving.rank.device_probe import ProbeError, find_gpus


class Driver:
    """Two GPUs, unless ``init`` is a code of an error."""

    def __init__(self, init: int = 0, version: int = 13000, memory: int = 0) -> None:
        self._init, self._version, self._memory = init, version, memory

    def cuInit(self, flags: int) -> int:
        return self._init

    def cuDriverGetVersion(self, out: Any) -> int:
        out._obj.value = self._version
        return 0

    def cuDeviceGetCount(self, out: Any) -> int:
        out._obj.value = 2
        return 0

    def cuDeviceGetName(self, name: Any, size: int, device: Any) -> int:
        name.value = b"NVIDIA H200"
        return 0

    def cuMemGetInfo_v2(self, free: Any, total: Any) -> int:
        free._obj.value, total._obj.value = 139 * GIB, 140 * GIB
        return self._memory

    def cuGetErrorString(self, code: int, out: Any) -> int:
        out._obj.value = b"unspecified launch failure"
        return 0

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: 0


@pytest.fixture
def with_driver(monkeypatch: pytest.MonkeyPatch) -> Any:
    def put(driver: Driver, cuda: str | None = "13.0") -> None:
        monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
        monkeypatch.setattr(device_probe, "_torch_version", lambda: {"__version__": "2.11.0", "cuda": cuda})

    return put


def test_every_gpu_with_its_memory(with_driver: Any) -> None:
    with_driver(Driver())
    assert find_gpus() == [{"name": "NVIDIA H200", "total_bytes": 140 * GIB, "free_bytes": 139 * GIB}] * 2


@pytest.mark.parametrize(
    ("driver", "cuda", "said"),
    [
        (Driver(init=100), "13.0", "the NVIDIA driver finds no GPU"),
        (Driver(version=12080), "13.0", "supports CUDA 12.8, torch needs 13.0: it is too old"),
        (
            Driver(memory=719),
            "13.0",
            "failed with code 719: unspecified launch failure",
        ),
        (Driver(), None, "torch 2.11.0 is a build without CUDA and ROCm"),
    ],
    ids=["no GPU", "too old", "broken", "CPU build"],
)
def test_why_there_is_none(with_driver: Any, driver: Driver, cuda: str | None, said: str) -> None:
    with_driver(driver, cuda)
    with pytest.raises(ProbeError, match=said):
        find_gpus()


def test_no_driver_library(with_driver: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with_driver(Driver())
    monkeypatch.setattr(ctypes, "CDLL", lambda name: (_ for _ in ()).throw(OSError(f"{name}: cannot open")))
    with pytest.raises(ProbeError, match=r"no NVIDIA driver: libcuda\.so\.1: cannot open"):
        find_gpus()
