"""Which device the ranks get. The probe is replaced: what torch says of GPUs is given."""

from pathlib import Path

import pytest

from splitrank.models.memory import GIB
from splitrank.serving.launch import devices
from splitrank.serving.launch.devices import Devices, Gpu, choose_devices, probe
from splitrank.serving.options.config import EngineConfig

H200 = Gpu("NVIDIA H200", 140 * GIB, 139 * GIB)


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[Gpu]:
    """A driver, and the GPUs in the list."""
    gpus = [H200, H200]
    monkeypatch.setattr(devices, "_DRIVERS", (Path(__file__),))
    monkeypatch.setattr(devices, "probe", lambda: gpus or "torch finds none")
    return gpus


def test_auto_takes_gpus_where_there_is_one_a_rank(found: list[Gpu]) -> None:
    assert choose_devices(EngineConfig(pp=2)) == Devices("cuda", (0, 1), (H200, H200))
    assert choose_devices(EngineConfig(pp=2, tp=2)) == Devices("cpu")
    assert choose_devices(EngineConfig(device="cpu")) == Devices("cpu")
    found.clear()
    assert choose_devices(EngineConfig()) == Devices("cpu")


def test_without_a_driver_torch_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_DRIVERS", (Path("no/such/driver"),))
    monkeypatch.setattr(devices, "probe", lambda: pytest.fail("torch was asked"))
    assert choose_devices(EngineConfig()) == Devices("cpu")
    with pytest.raises(ValueError, match="devices 1: no driver of a GPU is loaded"):
        choose_devices(EngineConfig(devices=(1,)))


@pytest.mark.usefixtures("found")
def test_devices_by_hand() -> None:
    assert choose_devices(EngineConfig(device="cuda", devices=(1,))).numbers == (1,)
    assert choose_devices(EngineConfig(pp=2, devices=(1, 1), share_devices=True)).numbers == (1, 1)
    assert choose_devices(EngineConfig(device="cuda", pp=3, share_devices=True)).numbers == (0, 1, 0)


@pytest.mark.usefixtures("found")
@pytest.mark.parametrize(
    ("config", "said"),
    [
        (EngineConfig(device="cuda", devices=(2,)), "GPU 2 does not exist; torch finds 2, counted from 0"),
        (
            EngineConfig(device="cuda", pp=2, devices=(0, 0)),
            "devices 0,0: a GPU is named twice; --share-devices",
        ),
        (EngineConfig(device="cuda", pp=2, devices=(0,)), "2 ranks need 2 GPUs, not 1"),
        (EngineConfig(device="cuda", pp=4), "4 ranks need 4 GPUs, not 2"),
        (EngineConfig(device="cpu", devices=(0, 1)), "devices 0,1: they are GPUs, and the device is cpu"),
    ],
    ids=str,
)
def test_devices_that_cannot_be(config: EngineConfig, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        choose_devices(config)


def test_a_gpu_that_is_asked_for_and_not_there(found: list[Gpu]) -> None:
    found.clear()
    with pytest.raises(ValueError, match="device cuda: torch finds none"):
        choose_devices(EngineConfig(device="cuda"))
    with pytest.raises(ValueError, match="devices 0,1: torch finds none"):
        choose_devices(EngineConfig(pp=2, devices=(0, 1)))


def test_the_probe_is_a_process_with_torch() -> None:
    """Here torch is its CPU build, which the probe says; with GPUs there are some."""
    answer = probe()
    assert isinstance(answer, list) or "is a build without CUDA and ROCm" in answer
