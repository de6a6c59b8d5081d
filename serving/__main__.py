"""``python -m splitrank.serving`` is the ``splitrank`` command."""

from splitrank.serving.cli import console

console()
