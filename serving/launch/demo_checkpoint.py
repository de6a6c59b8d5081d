"""Where the demo checkpoint is: package data of a wheel, in the repository a link to configs/demo."""

from pathlib import Path

import splitrank


def demo_checkpoint_path() -> Path:
    """Folder of the demo checkpoint."""
    assert splitrank.__file__ is not None
    return Path(splitrank.__file__).parent / "demo"
