"""The program of a rank, started by the launcher: ``python -m splitrank.serving.rank.rank_main``."""

import gc
import sys


def main() -> int:
    """Imports without the garbage collector: what torch makes stays to the end, and to look at it again and again is a
    sixth of its import."""
    gc.disable()
    from splitrank.serving.rank.rank import main as run_rank

    gc.freeze()
    gc.enable()
    try:
        return run_rank()
    finally:
        gc.unfreeze()  # modules whose types have cycles count what is left at the exit


if __name__ == "__main__":
    sys.exit(main())
