"""``python -m splitrank.serving.rank.device_probe``: the GPUs that torch will find, as JSON; or why there is none.

NVIDIA's driver is asked without torch, whose import takes seconds of every start. ROCm's is asked through torch.
"""

import ctypes
import importlib.util
import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

_NAME_BYTES = 256
_NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE
Gpus = list[dict[str, str | int]]


class ProbeError(Exception):
    """Why there is no GPU, in one line."""


def main() -> int:
    try:
        print(json.dumps(find_gpus()))
    except ProbeError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def find_gpus() -> Gpus:
    version = _torch_version()
    if version.get("cuda") is None and version.get("hip") is None:
        raise ProbeError(f"torch {version['__version__']} is a build without CUDA and ROCm")
    if importlib.util.find_spec("triton") is None:
        raise ProbeError("Triton is not installed; it comes with torch's GPU builds")
    if version.get("cuda") is not None:
        return _of_cuda_driver(version["cuda"])
    return _of_torch()


def _torch_version() -> dict[str, Any]:
    """The names in torch/version.py, without torch itself."""
    torch = importlib.util.find_spec("torch")
    if torch is None or torch.origin is None:
        raise ProbeError("torch is not installed")
    file = Path(torch.origin).with_name("version.py")
    spec = importlib.util.spec_from_file_location("torch_version", file)
    assert isinstance(spec, ModuleSpec)
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return vars(module)


def _of_cuda_driver(needed: str) -> Gpus:
    """By CUDA's driver API; ``needed``: the CUDA of torch's build, whose major version the driver must have."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise ProbeError(f"no NVIDIA driver: {error}") from None
    if (code := cuda.cuInit(0)) == _NO_DEVICE:
        raise ProbeError("the NVIDIA driver finds no GPU")
    _check(cuda, code, "cuInit")
    number = ctypes.c_int()
    _check(cuda, cuda.cuDriverGetVersion(ctypes.byref(number)), "cuDriverGetVersion")
    major, minor = number.value // 1000, number.value % 1000 // 10
    if major < int(needed.partition(".")[0]):
        raise ProbeError(f"the NVIDIA driver supports CUDA {major}.{minor}, torch needs {needed}: it is too old")
    _check(cuda, cuda.cuDeviceGetCount(ctypes.byref(number)), "cuDeviceGetCount")
    return [_of_cuda_device(cuda, device) for device in range(number.value)]


def _of_cuda_device(cuda: ctypes.CDLL, number: int) -> dict[str, str | int]:
    """What is free is known in a context of the device alone."""
    device, context, name = ctypes.c_int(), ctypes.c_void_p(), ctypes.create_string_buffer(_NAME_BYTES)
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    _check(cuda, cuda.cuDeviceGet(ctypes.byref(device), number), "cuDeviceGet")
    _check(cuda, cuda.cuDeviceGetName(name, _NAME_BYTES, device), "cuDeviceGetName")
    _check(cuda, cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device), "cuDevicePrimaryCtxRetain")
    _check(cuda, cuda.cuCtxSetCurrent(context), "cuCtxSetCurrent")
    _check(cuda, cuda.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)), "cuMemGetInfo")
    _check(cuda, cuda.cuDevicePrimaryCtxRelease_v2(device), "cuDevicePrimaryCtxRelease")
    return {"name": name.value.decode(), "total_bytes": total.value, "free_bytes": free.value}


def _check(cuda: ctypes.CDLL, code: int, call: str) -> None:
    if code:
        text = ctypes.c_char_p()
        cuda.cuGetErrorString(code, ctypes.byref(text))
        said = text.value.decode() if text.value else "an unknown error"
        raise ProbeError(f"{call} of the NVIDIA driver failed with code {code}: {said}")


def _of_torch() -> Gpus:
    import torch

    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except RuntimeError as error:  # no GPU, or a driver that is older than torch's ROCm
        raise ProbeError(" ".join(str(error).split())) from None
    gpus: Gpus = []
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        gpus.append({"name": torch.cuda.get_device_name(number), "total_bytes": total, "free_bytes": free})
    return gpus


if __name__ == "__main__":
    sys.exit(main())
