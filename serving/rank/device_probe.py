"""``python -m splitrank.serving.rank.device_probe``: the GPUs that torch finds, as JSON; or why there is none."""

import importlib.util
import json
import sys

import torch


def main() -> int:
    if reason := _missing():
        print(reason, file=sys.stderr)
        return 1
    gpus = []
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        gpus.append({"name": torch.cuda.get_device_name(number), "total_bytes": total, "free_bytes": free})
    print(json.dumps(gpus))
    return 0


def _missing() -> str:
    if torch.version.cuda is None and torch.version.hip is None:
        return f"torch {torch.__version__} is a build without CUDA and ROCm"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed; it comes with torch's GPU builds"
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except RuntimeError as error:  # no GPU, or a driver that is older than torch's CUDA
        return " ".join(str(error).split())
    return ""


if __name__ == "__main__":
    sys.exit(main())
