"""Which ranks are ready, silent, failed, or late with a step. It has no clock: callers pass the time."""

from splitrank.serving.protocol.messages import Heartbeat, LaunchSpec, RankFailed, RankReady, RankStats, RankToEngine
from splitrank.serving.protocol.wire import rank_name


class RankWatch:
    """Raises nothing. ``find_failure`` returns one line with the rank, its phase and the limit that has passed."""

    def __init__(self, spec: LaunchSpec, now: float) -> None:
        self._spec = spec
        self._started = now
        self._last_message_at: dict[int, float] = {}
        self._beats: dict[int, Heartbeat] = {}
        self._ready: dict[int, RankReady] = {}
        self._failed: RankFailed | None = None

    def on_message(self, message: RankToEngine, now: float) -> None:
        if isinstance(message, Heartbeat):
            self._last_message_at[message.rank] = now
            self._beats[message.rank] = message
        elif isinstance(message, RankReady):
            self._last_message_at[message.rank] = now  # it may die before its first heartbeat arrives
            self._ready[message.rank] = message
        elif isinstance(message, RankFailed):
            self._failed = self._failed or message  # the first failure is the cause of the others

    @property
    def all_ready(self) -> bool:
        return len(self._ready) == self._spec.world_size

    @property
    def reports(self) -> list[str]:
        ready = [self._ready[rank] for rank in sorted(self._ready)]
        return [one.report for one in ready] + [line for one in ready for line in one.stage_report.splitlines()]

    def stats(self, now: float) -> list[RankStats]:
        """The statistics of all ranks, in rank order; call it when all are ready."""
        return [self._stats_of(rank, now) for rank in range(self._spec.world_size)]

    def _stats_of(self, rank: int, now: float) -> RankStats:
        beat = self._beats.get(rank) or Heartbeat(rank, "serve", -1)  # ready, and its first heartbeat is on its way
        return RankStats(now - self._last_message_at[rank], beat.phase, beat.last_step)

    @property
    def rank_error(self) -> str | None:
        """The error of the first rank that failed."""
        if self._failed is None:
            return None
        return f"{rank_name(self._spec, self._failed.rank)} failed in {self._failed.phase}: {self._failed.error}"

    def find_failure(self, now: float, step: int | None, step_since: float) -> str | None:
        """``step`` is the oldest one in flight, None without any; its result is awaited since ``step_since``."""
        overdue = self._find_late_start(now) or self._find_overdue(now, step, step_since)
        return self.rank_error or self._find_silent(now) or overdue

    def _find_silent(self, now: float) -> str | None:
        limit = self._spec.heartbeat_timeout_s
        for rank, at in sorted(self._last_message_at.items(), key=lambda item: item[1]):
            if now - at > limit:
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
        late.sort(key=lambda rank: rank in self._beats)  # a rank that has never been heard of is what others wait for
        return "; ".join(f"{rank_name(self._spec, rank)}, {self._last(rank)}" for rank in late)

    def _last(self, rank: int) -> str:
        beat = self._beats.get(rank)
        if beat is None:
            return "no heartbeat yet"
        finished = "no step finished yet" if beat.last_step < 0 else f"last finished step {beat.last_step}"
        return f"phase {beat.phase}, {finished}"
