"""Where snapshots of prefixes are taken and used, and what the ranks hear of it with the next plan.

A recurrent state cannot be cut back to an earlier token, so a prefix can be reused only from where its state was saved,
and a state in every block would be too many bytes. A snapshot is taken at three places:

- PROMPT: the last whole block of a prompt, without the generation marker. The next turn of a chat begins from it. Its
  own snapshot then replaces it, so a chat needs one.
- ANSWER: the last computed token of a finished request. It is taken instead of the others, and only if the
  request's own prompt repeats an earlier answer word for word: it begins from an ANSWER snapshot, or from a PROMPT one
  and goes on as the request did that took it. A template that drops earlier thinking never repeats an answer so.
- BRANCH: where a prompt parts from the prompts before it, which shows when it comes (Marconi, Pan et al. 2024, arXiv
  2411.19379).
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from splitrank.serving.engine.prefix_cache import Digest, Kind, PrefixCache, Snapshot, chain_digests
from splitrank.serving.engine.request import Request
from splitrank.serving.protocol.messages import LaunchSpec, SnapshotPlan

MAX_SEEN = 16_384  # blocks of earlier prompts that are remembered: some MB

# A chat prompt ends with the mark of the answer to come, "<think>\n" or "<think>\n\n</think>\n\n" in Qwen's template.
# The next turn's prompt has the answer itself there, so a snapshot behind the mark would never be found again.
MARKER_TOKENS = 8

# Tokens of an answer, behind the generation marker, that must come back for it to count as coming back word for word.
ANSWER_TOKENS = 8


@dataclass(frozen=True, slots=True)
class _Wanted:
    num_tokens: int
    digest: Digest
    kind: Kind


@dataclass(slots=True)
class _PrefixUse:
    """What one request has to do with the cache."""

    digests: list[Digest]  # of its prompt's whole blocks
    start: Snapshot | None = None  # what it begins from
    is_restored: bool = False
    wanted: list[_Wanted] = field(default_factory=list)  # of its prompt, nearest first
    taken: Snapshot | None = None  # its PROMPT snapshot
    keeps_answer: bool = False


@dataclass(slots=True)
class SnapshotNews:
    """The parts of the next plan that are about snapshots."""

    kept: list[SnapshotPlan] = field(default_factory=list)
    restored: list[SnapshotPlan] = field(default_factory=list)
    saved: list[SnapshotPlan] = field(default_factory=list)
    dropped: list[int] = field(default_factory=list)


class Snapshots:
    """Follows each request from its admission to its end. A budget of 0 switches all of it off."""

    def __init__(self, spec: LaunchSpec) -> None:
        self._spec = spec
        self._is_on = spec.prefix_cache_bytes > 0
        self._cache = PrefixCache(spec)
        self._seen: OrderedDict[Digest, None] = OrderedDict()  # blocks of earlier prompts, least recent first
        self._pending: set[Digest] = set()  # some request is on the way to save it
        self._uses: dict[int, _PrefixUse] = {}
        self._news = SnapshotNews()

    def cached_tokens(self, request: Request, step: int) -> int:
        """Tokens of its prompt that a waiting request would not have to compute if it were admitted at ``step``."""
        if not self._is_on:
            return 0
        use = self._uses.get(request.number)
        if use is None:
            digests = chain_digests(request.prompt_token_ids, self._spec.prefix_block_size)
            use = self._uses[request.number] = _PrefixUse(digests)
        use.start = self._cache.find(request.prompt_token_ids, use.digests, step)
        return use.start.num_tokens if use.start is not None else 0

    def admit(self, request: Request) -> None:
        """It begins from what ``cached_tokens`` has found; its prompt is remembered for later ones."""
        if not self._is_on:
            return
        use = self._uses[request.number]
        num_seen = _num_blocks(use.digests, self._seen.__contains__)
        self._remember(use.digests)
        if use.start is not None:
            self._cache.use(use.start)
            use.keeps_answer = _comes_back(use.start, request.prompt_token_ids)
        if not use.keeps_answer:
            self._want_both(use, len(request.prompt_token_ids), num_seen)

    def _want_both(self, use: _PrefixUse, prompt_tokens: int, num_seen: int) -> None:
        """The PROMPT snapshot, and a BRANCH after the blocks that an earlier prompt had too."""
        size, begin = self._spec.prefix_block_size, use.start.num_tokens if use.start is not None else 0
        branch = min(num_seen, (prompt_tokens - 1) // size)
        self._want(use, begin, (prompt_tokens - MARKER_TOKENS) // size, Kind.PROMPT)
        # Where an earlier prompt ended, soon behind its own snapshot, the two do not part.
        reach = max(begin, _num_blocks(use.digests[:branch], self._is_taken) * size)
        if not reach or branch * size >= reach + size + MARKER_TOKENS:
            self._want(use, begin, branch, Kind.BRANCH)
        use.wanted.sort(key=lambda wanted: wanted.num_tokens)

    def _want(self, use: _PrefixUse, begin: int, num_blocks: int, kind: Kind) -> None:
        """Take a snapshot after so many blocks, if that is computed, new, and nobody is about to."""
        num_tokens = num_blocks * self._spec.prefix_block_size
        if num_tokens <= begin:
            return
        digest = use.digests[num_blocks - 1]
        if not self._is_taken(digest) and self._cache.can_hold(num_tokens):
            self._pending.add(digest)
            use.wanted.append(_Wanted(num_tokens, digest, kind))

    def _is_taken(self, digest: Digest) -> bool:
        return digest in self._pending or self._cache.has(digest, [])

    def placed(self, request: Request, step: int) -> None:
        """``step`` computes its prompt up to ``num_scheduled``: what it begins from, and what is saved on the way."""
        use = self._uses.get(request.number)
        if use is None:
            return
        if use.start is not None and not use.is_restored:
            use.is_restored = True
            self._news.restored.append(self._plan(use.start, request))
        while use.wanted and use.wanted[0].num_tokens <= request.num_scheduled:
            wanted = use.wanted.pop(0)
            self._pending.remove(wanted.digest)
            snapshot = self._add(use, wanted.kind, wanted.digest, [], wanted.num_tokens, step)
            self._news.saved.append(self._plan(snapshot, request))
            if wanted.kind is Kind.PROMPT:
                use.taken = snapshot

    def keep_answer(self, request: Request, step: int) -> None:
        """It has come to a regular end, still owns slot and pages, and ``step`` is the next one to be planned.

        What was computed is kept: all but the last token, or that too, if the next step was planned ahead.
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
            self._news.kept.append(self._plan(snapshot, request))

    def forget(self, request: Request) -> None:
        """It has ended, in whatever way: what it was to save is left to others."""
        use = self._uses.pop(request.number, None)
        if use is not None:
            self._pending.difference_update(wanted.digest for wanted in use.wanted)

    def take_news(self) -> SnapshotNews:
        news, self._news = self._news, SnapshotNews()
        return news

    def _add(
        self, use: _PrefixUse, kind: Kind, digest: Digest, tail: list[int], num_tokens: int, step: int
    ) -> Snapshot:
        """A turn's snapshot replaces the one of the turn before, unless others have begun from that too."""
        start = use.start
        is_next_turn = start is not None and start.kind is kind is not Kind.BRANCH and start.num_uses == 1
        snapshot, dropped = self._cache.add(kind, digest, tail, num_tokens, step, start if is_next_turn else None)
        self._news.dropped += dropped
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
        """Integrity: only open requests are followed, and everything pending is wanted by one of them."""
        self._cache.check()
        assert self._uses.keys() <= open_requests, "a request that has ended is still followed"
        wanted = [one.digest for use in self._uses.values() for one in use.wanted]
        assert sorted(wanted) == sorted(self._pending), "a snapshot is pending that nobody takes, or two take it"


def _num_blocks(digests: list[Digest], is_known: Callable[[Digest], bool]) -> int:
    """How many blocks the longest known beginning has."""
    return next((count for count in range(len(digests), 0, -1) if is_known(digests[count - 1])), 0)


def _comes_back(start: Snapshot, prompt: list[int]) -> bool:
    """Whether the prompt repeats an earlier answer word for word."""
    if start.kind is Kind.ANSWER:
        return True
    end = start.num_tokens + len(start.continuation)
    return bool(start.continuation) and prompt[start.num_tokens : end] == start.continuation
