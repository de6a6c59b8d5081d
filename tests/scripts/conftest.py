"""scripts/train_demo and scripts/faults are folders, not packages: their modules are imported as their programs do."""

import sys
from pathlib import Path

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path[:0] = [str(SCRIPTS / "train_demo"), str(SCRIPTS / "faults")]
