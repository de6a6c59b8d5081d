"""scripts/train_demo is a folder of programs, not a package: its modules are imported as the programs do."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts" / "train_demo"))
