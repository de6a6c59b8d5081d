"""How much of the pipeline the steps in flight can fill. It has no clock: callers pass the time."""


class Occupancy:
    """Adds up stage-seconds while steps are in flight. A step is in one stage at a time, so k steps fill at most k.

    ``stage_busy_s`` is therefore an upper bound of the time that stages compute, and ``bubble_s`` a lower bound of the
    time that they wait for each other. Time without any step in flight is in neither: nobody asked for anything.
    """

    def __init__(self, num_stages: int, now: float) -> None:
        self._num_stages = num_stages
        self._num_in_flight = 0
        self._since = now
        self.stage_busy_s = 0.0
        self.bubble_s = 0.0

    def update(self, num_in_flight: int, now: float) -> None:
        """``num_in_flight`` steps from now on. Call it with each change, and before the sums are read."""
        filled = min(self._num_in_flight, self._num_stages)
        elapsed_s = now - self._since
        if filled:
            self.stage_busy_s += filled * elapsed_s
            self.bubble_s += (self._num_stages - filled) * elapsed_s
        self._num_in_flight, self._since = num_in_flight, now
