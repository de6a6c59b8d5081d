"""Takes at start what steps may need of a device's memory later: another program cannot take it, and no step fails.

torch keeps memory that was freed, and cuts later tensors out of it. The warm-up has run the longest prompt alone; a
step may have more rows, requests that the host samples or whose prompts are scored, and snapshots of prefixes.
"""

import torch

from splitrank.models.memory import GIB
from splitrank.serving.protocol.messages import LaunchSpec
from splitrank.serving.rank.prompt_logprobs import MAX_LOGITS

_SCORES = 8  # tensors of MAX_LOGITS float32 at once: logits twice, log probabilities, and what sorting them takes


def reserve_memory(spec: LaunchSpec, device: torch.device, longest: int, peak_bytes: int, draws: bool) -> None:
    """``peak_bytes``: what a step of one prompt of ``longest`` tokens took. ``draws``: this rank has logits.

    Raises ``ValueError`` with the bytes if the device does not have them.
    """
    wanted = reserve_bytes(spec, longest, peak_bytes, draws)
    try:
        torch.empty(wanted, dtype=torch.uint8, device=device)
    except torch.OutOfMemoryError:
        free, _ = torch.cuda.mem_get_info(device)
        raise ValueError(
            f"{device} has {free / GIB:.2f} GiB left, steps may need {wanted / GIB:.2f} GiB: give a smaller "
            "--mem-fraction-static or --max-prefill-tokens"
        ) from None


def reserve_bytes(spec: LaunchSpec, longest: int, peak_bytes: int, draws: bool) -> int:
    """Beyond ``peak_bytes``, which torch has kept."""
    most = spec.max_prefill_tokens + spec.max_decodes
    more_rows = peak_bytes * max(0, most - longest) // longest
    scores = _SCORES * 4 * max(MAX_LOGITS, spec.vocab_size)
    by_host = 2 * 4 * spec.max_running_requests * spec.vocab_size  # rows picked, and the same in float32
    return more_rows + spec.prefix_cache_bytes + (scores + by_host if draws else 0)
