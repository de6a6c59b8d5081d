"""Learning rate: warm up, stay, decay to nothing."""

WARMUP_STEPS = 100
DECAY_SHARE = 0.5  # of the whole run: most of the last gains come while the rate falls


def learning_rate(
    peak: float, step: int, progress: float, warmup_steps: int = WARMUP_STEPS, decay_share: float = DECAY_SHARE
) -> float:
    """``progress`` 0 to 1 is the share of the run's time or steps that has passed; beyond 1 the rate is 0."""
    warm = min(1.0, (step + 1) / warmup_steps)
    left = min(1.0, max(0.0, 1.0 - progress) / decay_share)
    return peak * warm * left
