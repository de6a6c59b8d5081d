"""Writes a checkpoint's weights under the hub's names, as bf16 safetensors of a size that travels.

    python scripts/train_demo/export.py --checkpoint /tmp/train_demo/last.pt --out build/train_demo/model

``A_log`` and the gated norm stay in float32, as in Qwen3.5. More than one file brings an index, as on the hub.
"""

import argparse
import json
from pathlib import Path

import torch
from checkpoint import load
from model import build_model
from model_config import text_config
from safetensors.torch import load_file, save_file
from torch import Tensor

MAX_FILE_BYTES = 15_700_000  # two files, each small enough for transfers limited to 16 MiB
_FLOAT32 = ("linear_attn.A_log", "linear_attn.norm.weight")
_OURS, _HUBS = "model.", "model.language_model."


def hub_tensors(model: torch.nn.Module) -> dict[str, Tensor]:
    tensors = {}
    for name, weight in model.state_dict().items():
        hub_name = _HUBS + name.removeprefix(_OURS) if name.startswith(_OURS) else name
        dtype = torch.float32 if name.endswith(_FLOAT32) else torch.bfloat16
        tensors[hub_name] = weight.detach().to("cpu", dtype).contiguous()
    return tensors


def write_weights(model: torch.nn.Module, folder: Path, max_file_bytes: int = MAX_FILE_BYTES) -> list[Path]:
    """``model.safetensors``, or numbered files and their index. Older weights in the folder go."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("model*.safetensors*"):
        old.unlink()
    tensors = hub_tensors(model)
    files = _split(tensors, max_file_bytes)
    if len(files) == 1:
        _save(tensors, folder / "model.safetensors")
        return [folder / "model.safetensors"]
    names = [f"model-{number:05}-of-{len(files):05}.safetensors" for number in range(1, len(files) + 1)]
    for name, part in zip(names, files, strict=True):
        _save(part, folder / name)
    index = {
        "metadata": {"total_size": sum(map(_num_bytes, tensors.values()))},
        "weight_map": {tensor: name for name, part in zip(names, files, strict=True) for tensor in part},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return [folder / name for name in names]


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    """Readable by all: safetensors makes its files for the owner alone."""
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(0o644)


def _split(tensors: dict[str, Tensor], max_file_bytes: int) -> list[dict[str, Tensor]]:
    """In order, each file as full as it gets."""
    files: list[dict[str, Tensor]] = [{}]
    filled = 0
    for name, tensor in tensors.items():
        if filled and filled + _num_bytes(tensor) > max_file_bytes:
            files.append({})
            filled = 0
        files[-1][name] = tensor
        filled += _num_bytes(tensor)
    return files


def _num_bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def read_weights(model: torch.nn.Module, folder: Path) -> None:
    """Hub-named files into the model: to train on from an export, without its optimizer."""
    tensors: dict[str, Tensor] = {}
    for path in sorted(folder.glob("model*.safetensors")):
        tensors |= load_file(path)
    named = {_OURS + name.removeprefix(_HUBS) if name.startswith(_HUBS) else name: t for name, t in tensors.items()}
    model.load_state_dict(named)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", type=Path, help="a training checkpoint")
    source.add_argument("--weights", type=Path, help="a folder that this program wrote, to be split otherwise")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--max-file-bytes", type=int, default=MAX_FILE_BYTES)
    arguments = parser.parse_args()
    model = build_model(text_config(), seed=0)
    if arguments.checkpoint:
        load(arguments.checkpoint, model, None, "cpu")
    else:
        read_weights(model, arguments.weights)
    for path in write_weights(model, arguments.out, arguments.max_file_bytes):
        print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
