"""``python -m splitrank.serving.engine.engine_main --run-dir D``: the engine process, started by the launcher."""

import argparse
import logging
import sys

from splitrank.serving.engine.engine import Engine
from splitrank.serving.launch.launcher import load_spec
from splitrank.serving.launch.processes import exit_with_parent
from splitrank.serving.options.console import be_lenient_with_streams


def main() -> int:
    be_lenient_with_streams()
    parser = argparse.ArgumentParser(description="engine process of splitrank; started by the launcher")
    parser.add_argument("--run-dir", required=True)
    spec = load_spec(parser.parse_args().run_dir)
    exit_with_parent(spec.front_pid, spec.run_dir)
    logging.basicConfig(level=spec.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    return 1 if Engine(spec).run() else 0


if __name__ == "__main__":
    sys.exit(main())
