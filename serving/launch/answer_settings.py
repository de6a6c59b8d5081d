"""What may change an answer beside the model's files, listed once: for the fingerprint and for resuming a batch."""

from typing import Any

import msgspec

from splitrank import __version__
from splitrank.serving.protocol.messages import LaunchSpec

# Fields of the launch spec that change no answer: any other, also a new one, counts. How many requests share a step
# changes last bits as well, but depends on the moment, whatever the limits are.
_WITHOUT_EFFECT = {
    "run_dir", "model_dir", "max_running_requests", "max_queued_requests", "num_pages", "state_bytes", "kv_page_bytes",
    "load_timeout_s", "step_timeout_s", "heartbeat_timeout_s", "log_level", "show_progress", "front_pid",
}  # fmt: skip
_NAMES_OF_OPTIONS = {"tp_size": "tp", "pp_size": "pp", "partition": "pp_partition"}


def answer_settings(spec: LaunchSpec) -> dict[str, Any]:
    """By name, as JSON has them. Equal settings and models give equal answers, but for what shares a step."""
    settings: dict[str, Any] = {"version": __version__}
    for name in spec.__struct_fields__:
        if name not in _WITHOUT_EFFECT and (spec.tp_size > 1 or not name.startswith("all_reduce")):
            settings[_NAMES_OF_OPTIONS.get(name, name)] = getattr(spec, name)
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(settings))
    return plain
