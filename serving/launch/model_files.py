"""From ``--model`` to a checkpoint folder: the demo, a folder, or a hub id when online."""

from functools import partial
from pathlib import Path

from splitrank.serving.launch.demo_checkpoint import demo_checkpoint_path
from splitrank.serving.options.abandonable import in_daemon_thread, wait_for

_PATTERNS = ["*.json", "*.jinja", "*.safetensors"]


def model_folder(model: str) -> Path:
    """The local folder of a model; a hub id is downloaded to the hub's cache. Raises ``ValueError``."""
    if not model:
        return demo_checkpoint_path()
    folder = Path(model)
    if folder.exists():
        return folder
    if model.count("/") != 1 or model.startswith((".", "/", "~")):
        raise ValueError(f"{model}: no such checkpoint folder")
    return _download(model)


def _download(repo: str) -> Path:
    from huggingface_hub import snapshot_download  # only a hub id needs it

    try:
        # Ctrl-C ends this wait at once; snapshot_download itself would wait for all files first.
        return Path(wait_for(in_daemon_thread(partial(snapshot_download, repo, allow_patterns=_PATTERNS))))
    except (OSError, ValueError) as error:  # the hub's errors derive from these two
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{repo}: neither a folder nor to be had from the hub: {reason}") from error
