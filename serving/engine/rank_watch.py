"""Which rank is ready, which one is silent, and who holds up a step. No clock of its own: callers pass the time."""

from splitrank.serving.protocol.messages import Heartbeat, LaunchSpec, RankFailed, RankReady, RankToEngine
from splitrank.serving.protocol.wire import rank_name


class RankWatch:
    """Raises nothing; ``find_failure`` returns the one line that says which rank, in which phase, and the limit."""

    def __init__(self, spec: LaunchSpec, now: float) -> None:
        self._spec = spec
        self._started = now
        self._heard: dict[int, float] = {}
        self._beats: dict[int, Heartbeat] = {}
        self._ready: dict[int, RankReady] = {}
        self._failed: RankFailed | None = None

    def hear(self, message: RankToEngine, now: float) -> None:
        if isinstance(message, Heartbeat):
            self._heard[message.rank] = now
            self._beats[message.rank] = message
        elif isinstance(message, RankReady):
            self._heard[message.rank] = now  # it may fall silent before its first heartbeat is here
            self._ready[message.rank] = message
        elif isinstance(message, RankFailed):
            self._failed = self._failed or message  # the first one is the cause

    @property
    def all_ready(self) -> bool:
        return len(self._ready) == self._spec.world_size

    @property
    def reports(self) -> list[str]:
        ready = [self._ready[rank] for rank in sorted(self._ready)]
        return [one.report for one in ready] + [one.stage_report for one in ready if one.stage_report]

    @property
    def confession(self) -> str | None:
        """What the first rank that gave up said."""
        if self._failed is None:
            return None
        return f"{rank_name(self._spec, self._failed.rank)} failed in {self._failed.phase}: {self._failed.error}"

    def find_failure(self, now: float, step: int | None, step_since: float) -> str | None:
        """``step``: the oldest one in flight, if any, awaited since ``step_since``."""
        overdue = self._find_late_start(now) or self._find_overdue(now, step, step_since)
        return self.confession or self._find_silent(now) or overdue

    def _find_silent(self, now: float) -> str | None:
        limit = self._spec.heartbeat_timeout_s
        for rank, heard in sorted(self._heard.items(), key=lambda item: item[1]):
            if now - heard > limit:
                return f"{rank_name(self._spec, rank)} has been silent for more than {limit:g} s; {self._last(rank)}"
        return None

    def _find_late_start(self, now: float) -> str | None:
        if self.all_ready or now - self._started <= self._spec.load_timeout_s:
            return None
        return f"not ready after {self._spec.load_timeout_s:g} s: {self._name(set(self._ready))}"

    def _find_overdue(self, now: float, step: int | None, since: float) -> str | None:
        if step is None or now - since <= self._spec.step_timeout_s:
            return None
        done = {rank for rank, beat in self._beats.items() if beat.last_step >= step}
        who = self._name(done) if len(done) < self._spec.world_size else "every rank has finished it, no result came"
        return f"step {step} is not done after {self._spec.step_timeout_s:g} s: {who}"

    def _name(self, done: set[int]) -> str:
        late = [rank for rank in range(self._spec.world_size) if rank not in done]
        return "; ".join(f"{rank_name(self._spec, rank)}, {self._last(rank)}" for rank in late)

    def _last(self, rank: int) -> str:
        beat = self._beats.get(rank)
        return f"phase {beat.phase}, last finished step {beat.last_step}" if beat else "no heartbeat yet"
