"""All settings that may change an answer, beside the model's files. The fingerprint and resumed batches use them."""

from typing import Any

import msgspec

from splitrank import __version__
from splitrank.serving.protocol.messages import LaunchSpec

# Fields of the launch spec that change no answer. Any other field counts, a new one, too. Which requests share a step
# changes last bits as well, but that depends on the moment, not on the limits.
_WITHOUT_EFFECT = {
    "run_dir", "model_dir", "max_running_requests", "max_queued_requests", "num_pages", "state_bytes", "kv_page_bytes",
    "load_timeout_s", "step_timeout_s", "heartbeat_timeout_s", "log_level", "show_progress", "front_pid",
    "pin_threads", "num_nodes", "node_rank", "init_address", "bind", "secret_file", "join_timeout_s", "engine_address",
    "links",
}  # fmt: skip
_NAMES_OF_OPTIONS = {"tp_size": "tp", "pp_size": "pp", "partition": "pp_partition"}


def answer_settings(spec: LaunchSpec) -> dict[str, Any]:
    """The settings by name, as JSON values. Equal settings and models give equal answers, up to which requests share a
    step."""
    settings: dict[str, Any] = {"version": __version__}
    for name in spec.__struct_fields__:
        if name not in _WITHOUT_EFFECT and (spec.tp_size > 1 or not name.startswith("all_reduce")):
            settings[_NAMES_OF_OPTIONS.get(name, name)] = getattr(spec, name)
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(settings))
    return plain
