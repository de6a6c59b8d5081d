"""How many KV pages a sequence takes: engine and ranks count alike."""


def pages_needed(num_tokens: int, page_size: int) -> int:
    """Pages that hold ``num_tokens`` tokens."""
    return -(-num_tokens // page_size)
