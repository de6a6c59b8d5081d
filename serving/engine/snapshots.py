"""Decides where snapshots of prefixes are taken and used; collects what the next plan tells the ranks about them.

A recurrent state cannot be cut back to an earlier token, so a prefix can be reused only up to a position at which its
state was saved. To save a state in every block would take too many bytes. A snapshot is taken at three positions:

- PROMPT: the end of a prompt's last whole block, before the generation marker. The next turn of a chat begins from it,
  and then replaces it by its own, so a chat needs one.
- ANSWER: the last computed token of a finished request. It is taken instead of the other two, and only if the prompt
  of the request repeats an earlier answer word for word. That is so if it begins from an ANSWER snapshot, or if it
  begins from a PROMPT snapshot and continues as the request did that took it. A chat template that drops earlier
  thinking does not repeat answers.
- BRANCH: the position at which a prompt begins to differ from earlier prompts (Marconi, Pan et al. 2024, arXiv
  2411.19379).
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from splitrank.serving.engine.prefix_cache import Digest, Kind, PrefixCache, Snapshot, chain_digests
from splitrank.serving.engine.request import Request
from splitrank.serving.protocol.messages import LaunchSpec, SnapshotPlan

MAX_SEEN = 16_384  # blocks of earlier prompts whose digests are remembered: some MB

# A chat prompt ends with a generation marker, "<think>\n" or "<think>\n\n</think>\n\n" in Qwen's template. The next
# turn's prompt holds the answer there instead, so a snapshot behind the marker would never be found again.
MARKER_TOKENS = 8

# An answer counts as repeated word for word if so many tokens after the generation marker are the same.
ANSWER_TOKENS = 8


@dataclass(frozen=True, slots=True)
class _Wanted:
    num_tokens: int
    digest: Digest
    kind: Kind


@dataclass(slots=True)
class _PrefixUse:
    """How one request uses the cache."""

    digests: list[Digest]  # of its prompt's whole blocks
    start: Snapshot | None = None  # it begins from this one
    is_restored: bool = False
    wanted: list[_Wanted] = field(default_factory=list)  # still to be taken in its prompt, by position
    taken: Snapshot | None = None  # its PROMPT snapshot, once taken
    keeps_answer: bool = False


@dataclass(slots=True)
class SnapshotChanges:
    """The parts of the next plan that are about snapshots."""

    kept: list[SnapshotPlan] = field(default_factory=list)
    restored: list[SnapshotPlan] = field(default_factory=list)
    saved: list[SnapshotPlan] = field(default_factory=list)
    dropped: list[int] = field(default_factory=list)


class Snapshots:
    """Follows each request from its admission to its end. With a budget of 0 no snapshot is taken."""

    def __init__(self, spec: LaunchSpec) -> None:
        self._spec = spec
        self._is_on = spec.prefix_cache_bytes > 0
        # A GPU's chunks begin at multiples of a block, and in the exact mode a prompt's tokens have other sums than
        # generated ones: it has no use for the state behind an answer.
        self._keeps_answers = spec.device == "cpu"
        self._cache = PrefixCache(spec)
        self._seen: OrderedDict[Digest, None] = OrderedDict()  # blocks of earlier prompts, least recent first
        self._pending: set[Digest] = set()  # of snapshots that an open request will take
        self._uses: dict[int, _PrefixUse] = {}
        self._changes = SnapshotChanges()

    def cached_tokens(self, request: Request, step: int) -> int:
        """Tokens of a waiting request's prompt that a snapshot holds, if the request is admitted at ``step``."""
        if not self._is_on:
            return 0
        use = self._uses.get(request.number)
        if use is None:
            digests = chain_digests(request.prompt_token_ids, self._spec.prefix_block_size)
            use = self._uses[request.number] = _PrefixUse(digests)
        # Log probabilities are wanted of every token, so every token is computed; other requests may use its snapshots.
        is_whole = request.params.prompt_logprobs is not None
        use.start = None if is_whole else self._cache.find(request.prompt_token_ids, use.digests, step)
        return use.start.num_tokens if use.start is not None else 0

    def admit(self, request: Request) -> None:
        """The request begins from the snapshot that ``cached_tokens`` has found; its prompt is remembered."""
        if not self._is_on:
            return
        use = self._uses[request.number]
        num_seen = _num_blocks(use.digests, self._seen.__contains__)
        self._remember(use.digests)
        if use.start is not None:
            self._cache.use(use.start)
            use.keeps_answer = self._keeps_answers and _repeats_answer(use.start, request.prompt_token_ids)
        if not use.keeps_answer:
            self._want_both(use, len(request.prompt_token_ids), num_seen)

    def _want_both(self, use: _PrefixUse, prompt_tokens: int, num_seen: int) -> None:
        """Wants the PROMPT snapshot, and a BRANCH one after the blocks that an earlier prompt had, too."""
        size, begin = self._spec.prefix_block_size, use.start.num_tokens if use.start is not None else 0
        branch = min(num_seen, (prompt_tokens - 1) // size)
        self._want(use, begin, (prompt_tokens - MARKER_TOKENS) // size, Kind.PROMPT)
        # Just behind the snapshot of an earlier prompt that prompt ended: the two have no branch there.
        reach = max(begin, _num_blocks(use.digests[:branch], self._is_taken) * size)
        if not reach or branch * size >= reach + size + MARKER_TOKENS:
            self._want(use, begin, branch, Kind.BRANCH)
        use.wanted.sort(key=lambda wanted: wanted.num_tokens)

    def _want(self, use: _PrefixUse, begin: int, num_blocks: int, kind: Kind) -> None:
        """Wants a snapshot after ``num_blocks``, if the request computes that position and nobody takes one there."""
        num_tokens = num_blocks * self._spec.prefix_block_size
        if num_tokens <= begin:
            return
        digest = use.digests[num_blocks - 1]
        if not self._is_taken(digest) and self._cache.can_hold(num_tokens):
            self._pending.add(digest)
            use.wanted.append(_Wanted(num_tokens, digest, kind))

    def _is_taken(self, digest: Digest) -> bool:
        return digest in self._pending or self._cache.has(digest, [])

    def note_planned(self, request: Request, step: int) -> None:
        """``step`` computes the prompt up to ``num_scheduled``: restores its snapshot first, saves those on the way."""
        use = self._uses.get(request.number)
        if use is None:
            return
        if use.start is not None and not use.is_restored:
            use.is_restored = True
            self._changes.restored.append(self._plan(use.start, request))
        while use.wanted and use.wanted[0].num_tokens <= request.num_scheduled:
            wanted = use.wanted.pop(0)
            self._pending.remove(wanted.digest)
            snapshot = self._add(use, wanted.kind, wanted.digest, [], wanted.num_tokens, step)
            self._changes.saved.append(self._plan(snapshot, request))
            if wanted.kind is Kind.PROMPT:
                use.taken = snapshot

    def keep_answer(self, request: Request, step: int) -> None:
        """Saves the state of a request that has ended regularly and still owns its slot and pages.

        ``step`` is the next one to be planned. The state is after the last token but one, or after the last token if a
        step was planned ahead.
        """
        use = self._uses.get(request.number)
        if use is None:
            return
        prompt_end, end, size = len(request.prompt_token_ids), request.num_scheduled, self._spec.prefix_block_size
        answer_end = min(end, request.num_known - 1, prompt_end + ANSWER_TOKENS)
        if use.taken is not None and answer_end > prompt_end:
            use.taken.continuation = request.tokens_between(use.taken.num_tokens, answer_end)
        if not use.keeps_answer or end < size or not self._cache.can_hold(end):
            return
        known = len(use.digests)
        rest = request.tokens_between(known * size, end)
        digests = [*use.digests[-1:], *chain_digests(rest, size, use.digests[-1] if known else b"")]
        tail = rest[len(rest) // size * size :]
        if not self._cache.has(digests[-1], tail):
            snapshot = self._add(use, Kind.ANSWER, digests[-1], tail, end, step - 1)
            self._changes.kept.append(self._plan(snapshot, request))

    def forget(self, request: Request) -> None:
        """The request has ended. Other requests may take the snapshots that it did not take."""
        use = self._uses.pop(request.number, None)
        if use is not None:
            self._pending.difference_update(wanted.digest for wanted in use.wanted)

    def take_changes(self) -> SnapshotChanges:
        changes, self._changes = self._changes, SnapshotChanges()
        return changes

    def _add(
        self, use: _PrefixUse, kind: Kind, digest: Digest, tail: list[int], num_tokens: int, step: int
    ) -> Snapshot:
        """Adds a snapshot. It replaces the one of the turn before, unless other requests have begun from that, too."""
        start = use.start
        is_next_turn = start is not None and start.kind is kind is not Kind.BRANCH and start.num_uses == 1
        snapshot, dropped = self._cache.add(kind, digest, tail, num_tokens, step, start if is_next_turn else None)
        self._changes.dropped += dropped
        return snapshot

    @staticmethod
    def _plan(snapshot: Snapshot, request: Request) -> SnapshotPlan:
        return SnapshotPlan(snapshot.number, snapshot.num_tokens, request.slot)

    def _remember(self, digests: list[Digest]) -> None:
        for digest in digests:
            self._seen[digest] = None
            self._seen.move_to_end(digest)
        while len(self._seen) > MAX_SEEN:
            self._seen.popitem(last=False)

    def check(self, open_requests: set[int]) -> None:
        """Checks that only open requests are followed, and that each pending snapshot is wanted by one of them."""
        self._cache.check()
        assert self._uses.keys() <= open_requests, "a request that has ended is still followed"
        wanted = [one.digest for use in self._uses.values() for one in use.wanted]
        assert sorted(wanted) == sorted(self._pending), "a pending snapshot is wanted by no request, or by two"


def _num_blocks(digests: list[Digest], is_known: Callable[[Digest], bool]) -> int:
    """Blocks of the longest beginning that ``is_known``."""
    return next((count for count in range(len(digests), 0, -1) if is_known(digests[count - 1])), 0)


def _repeats_answer(start: Snapshot, prompt: list[int]) -> bool:
    """Whether a prompt that begins from ``start`` repeats an earlier answer word for word."""
    if start.kind is Kind.ANSWER:
        return True
    end = start.num_tokens + len(start.continuation)
    return bool(start.continuation) and prompt[start.num_tokens : end] == start.continuation
