"""Which grammars ranks are compiling, for which requests. It has no clock: callers pass the time."""

from splitrank.serving.protocol.messages import GrammarCompiled, LaunchSpec
from splitrank.serving.protocol.wire import rank_name


class GrammarWatch:
    """A grammar takes milliseconds to compile. In a step, all rows of it would wait; so ranks compile it in a thread of
    their own, and its request is admitted when all of them have."""

    def __init__(self, spec: LaunchSpec) -> None:
        self._spec = spec
        self._awaited: dict[str, tuple[set[int], float]] = {}  # by request id, oldest first: ranks, and since when
        self._heard_at = 0.0

    @property
    def ranks(self) -> range:
        """Those that draw tokens (``Worker.draws_tokens``)."""
        first = (self._spec.pp_size - 1) * self._spec.tp_size
        return range(first, first + (self._spec.tp_size if self._spec.device == "cuda" else 1))

    def asked(self, request_id: str, now: float) -> None:
        self._awaited[request_id] = set(self.ranks), now

    def is_compiled(self, message: GrammarCompiled, now: float) -> bool:
        """Whether that was the last rank of those that the request waits for."""
        self._heard_at = now
        ranks, _ = self._awaited[message.request_id]
        ranks.discard(message.rank)
        if not ranks:
            del self._awaited[message.request_id]
        return not ranks

    def find_overdue(self, now: float) -> str | None:
        """One line that says who waits for whom, if one grammar takes longer than a step may. Of many, each may wait
        longer for those before it."""
        limit = self._spec.step_timeout_s
        request_id, (ranks, asked_at) = next(iter(self._awaited.items()), ("", (set[int](), now)))
        if now - max(asked_at, self._heard_at) <= limit:
            return None
        names = ", ".join(rank_name(self._spec, rank) for rank in sorted(ranks))
        return f"the grammar of request {request_id} is not compiled after {limit:g} s: {names}"
