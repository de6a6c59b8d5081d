"""Where the demo checkpoint is: package data when installed, a link to configs/demo in the repository."""

from pathlib import Path

import splitrank


def demo_checkpoint_path() -> Path:
    """Folder of the demo checkpoint."""
    assert splitrank.__file__ is not None
    return Path(splitrank.__file__).parent / "demo"
