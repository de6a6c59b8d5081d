"""What is taken from scripts/: the folder above is no package, so it joins the path here and nowhere else."""

import sys
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parents[1]
sys.path.append(str(SCRIPTS))

from demo_tokenizer import FIRST_SPECIAL_ID, SPECIAL_TOKENS, train_tokenizer, write_tokenizer_files  # noqa: E402

__all__ = ["FIRST_SPECIAL_ID", "SPECIAL_TOKENS", "demo_folder", "train_tokenizer", "write_tokenizer_files"]


def demo_folder() -> Path:
    return SCRIPTS.parent / "configs" / "demo"
