"""A plugin of pytest: ``splitrank._cpu_ops`` is the one in ``SPLITRANK_SANITIZED`` (``check_sanitizers``)."""

import importlib.util
import os
import sys
from pathlib import Path

NAME = "splitrank._cpu_ops"

(path,) = Path(os.environ["SPLITRANK_SANITIZED"]).glob("_cpu_ops*.so")
found = importlib.util.spec_from_file_location(NAME, path)
assert found is not None
assert found.loader is not None
sys.modules[NAME] = module = importlib.util.module_from_spec(found)
found.loader.exec_module(module)


def pytest_report_header() -> str:
    return f"{NAME}: {path}"
