"""Under which heading ``--help`` shows an option. What is in no group is the command's own, and comes first."""

COMMANDS_OWN = "options of this command"
GROUPS: dict[str, tuple[str, ...]] = {
    "model and layout": (
        "model", "dtype", "tp", "pp", "pp_partition", "load_format", "verify_weights", "exact", "all_reduce",
        "all_reduce_codec", "stage_link",
    ),
    "devices and threads": ("device", "devices", "share_devices", "prompt_graphs", "threads_per_rank", "pin_threads"),
    "batching and memory": (
        "max_model_len", "max_running_requests", "max_queued_requests", "mem_fraction_static", "page_size", "num_pages",
        "chunked_prefill_size", "max_prefill_tokens", "prefix_cache_mib",
    ),
    "requests and answers": (
        "served_model_name", "reasoning_parser", "tool_call_parser", "chat_template_kwargs", "clip_max_tokens", "seed",
    ),
    "waits and logs": ("load_timeout_s", "step_timeout_s", "heartbeat_timeout_s", "log_level"),
    "several hosts": ("nnodes", "node_rank", "dist_init_addr", "bind", "secret_file", "join_timeout_s"),
}  # fmt: skip


def grouped(names: list[str]) -> dict[str, list[str]]:
    """``names`` by heading, in the order in which help shows them; headings without a name are left out."""
    known = {name for group in GROUPS.values() for name in group}
    groups = {COMMANDS_OWN: [name for name in names if name not in known]}
    groups |= {title: [name for name in group if name in names] for title, group in GROUPS.items()}
    return {title: group for title, group in groups.items() if group}
