"""The prefix cache: finds the snapshot that a prompt can begin from, and evicts snapshots when the budget is full.

A snapshot is a copy of a sequence's recurrent state and pages in the ranks' host memory, like a swapped request. It
shares no page with a running request, so there are no reference counts. Here are numbers and digests only, no torch.
``snapshots.py`` decides where snapshots are taken.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

import msgspec

from splitrank.models.rounding import pages_needed
from splitrank.serving.protocol.messages import LaunchSpec

Digest = bytes

_encode = msgspec.msgpack.Encoder().encode


def chain_digests(tokens: list[int], block_size: int, previous: Digest = b"") -> list[Digest]:
    """The digest of each whole block and all tokens before it; ``previous`` is the digest of what comes before.

    The hash is cryptographic: with a collision, a request would get the state of another prompt.
    """
    digests = []
    for end in range(block_size, len(tokens) + 1, block_size):
        block = _encode(tokens[end - block_size : end])
        previous = hashlib.blake2b(previous + block, digest_size=16).digest()
        digests.append(previous)
    return digests


class Kind(Enum):
    BRANCH = "branch"  # where two prompts part
    PROMPT = "prompt"  # near the end of a prompt
    ANSWER = "answer"  # after the last token that a finished request has computed


@dataclass(slots=True, eq=False)
class Snapshot:
    """The state after the first ``num_tokens`` tokens of a sequence: whole blocks, then the tokens of ``tail``."""

    number: int  # never reused
    kind: Kind
    digest: Digest  # of the whole blocks
    tail: list[int]  # less than a block
    num_tokens: int
    num_bytes: int
    step: int  # requests admitted in later steps can begin from it
    num_uses: int = 0  # requests that began from it
    continuation: list[int] = field(default_factory=list)  # the tokens after it, in the request that took it


class PrefixCache:
    """Snapshots by their tokens, within a budget in bytes of the fullest rank.

    Segmented LRU. Evicted first are snapshots that a newer one has replaced; then snapshots that no request has begun
    from, if these hold more than half of the budget; then the others. So many prompts that never come again evict at
    most half of the cache.
    """

    def __init__(self, spec: LaunchSpec) -> None:
        self._spec = spec
        self._by_digest: dict[Digest, list[Snapshot]] = {}  # longest first
        self._replaced, self._unused, self._used = self._segments = (_Segment(), _Segment(), _Segment())
        self._next_number = 0

    def find(self, tokens: list[int], digests: list[Digest], step: int) -> Snapshot | None:
        """The longest snapshot that a prompt of these tokens and block digests can begin from at ``step``.

        It ends before the last token, since the logits of that one are needed for sampling.
        """
        for index in reversed(range(len(digests))):
            begin = (index + 1) * self._spec.prefix_block_size
            for snapshot in self._by_digest.get(digests[index], ()):
                is_usable = snapshot.step < step and snapshot.num_tokens < len(tokens)
                if is_usable and tokens[begin : snapshot.num_tokens] == snapshot.tail:
                    return snapshot
        return None

    def has(self, digest: Digest, tail: list[int]) -> bool:
        return any(snapshot.tail == tail for snapshot in self._by_digest.get(digest, ()))

    def can_hold(self, num_tokens: int) -> bool:
        """Whether the budget is large enough for a snapshot of so many tokens."""
        return self._bytes_of(num_tokens) <= self._spec.prefix_cache_bytes

    def use(self, snapshot: Snapshot) -> None:
        """A request begins from ``snapshot``."""
        snapshot.num_uses += 1
        self._move(snapshot, self._used)

    def add(
        self, kind: Kind, digest: Digest, tail: list[int], num_tokens: int, step: int, replaced: Snapshot | None
    ) -> tuple[Snapshot, list[int]]:
        """A new snapshot, saved in ``step``, and the numbers of the snapshots that are evicted for it.

        If ``replaced`` is among the used snapshots, the new one becomes a used one in its stead.
        """
        snapshot = Snapshot(self._next_number, kind, digest, tail, num_tokens, self._bytes_of(num_tokens), step)
        self._next_number += 1
        same_blocks = self._by_digest.setdefault(digest, [])
        same_blocks.append(snapshot)
        same_blocks.sort(key=lambda one: -one.num_tokens)
        segment, dropped = self._unused, []
        if replaced is not None and replaced in self._used:
            segment = self._used
            self._move(replaced, self._replaced)
        segment.add(snapshot)
        while self._num_bytes > self._spec.prefix_cache_bytes:
            dropped.append(self._remove(self._next_evicted(snapshot)))
        return snapshot, dropped

    @property
    def _num_bytes(self) -> int:
        return sum(segment.num_bytes for segment in self._segments)

    def _next_evicted(self, newest: Snapshot) -> Snapshot:
        half = self._spec.prefix_cache_bytes // 2
        segments = [self._replaced, self._used, self._unused]
        if self._unused.num_bytes > half:
            segments = [self._replaced, self._unused, self._used]
        return next(snapshot for segment in segments for snapshot in segment if snapshot is not newest)

    def _move(self, snapshot: Snapshot, segment: "_Segment | None") -> None:
        for one in self._segments:
            one.discard(snapshot)
        if segment is not None:
            segment.add(snapshot)

    def _remove(self, snapshot: Snapshot) -> int:
        self._move(snapshot, None)
        same_blocks = self._by_digest[snapshot.digest]
        same_blocks.remove(snapshot)
        if not same_blocks:
            del self._by_digest[snapshot.digest]
        return snapshot.number

    def _bytes_of(self, num_tokens: int) -> int:
        spec = self._spec
        return spec.state_bytes + pages_needed(num_tokens, spec.page_size) * spec.kv_page_bytes

    def check(self) -> None:
        """Checks the budget, and that the snapshots that can be found are those whose bytes are counted."""
        found = [snapshot for same_blocks in self._by_digest.values() for snapshot in same_blocks]
        assert sum(snapshot.num_bytes for snapshot in found) == self._num_bytes <= self._spec.prefix_cache_bytes
        kept = [snapshot.number for segment in self._segments for snapshot in segment]
        assert sorted(kept) == sorted(snapshot.number for snapshot in found), "a snapshot is in two segments or none"


class _Segment:
    """Snapshots, the least recently added first, and their bytes."""

    def __init__(self) -> None:
        self._members: OrderedDict[int, Snapshot] = OrderedDict()
        self.num_bytes = 0

    def __iter__(self) -> Iterator[Snapshot]:
        return iter(self._members.values())

    def add(self, snapshot: Snapshot) -> None:
        self._members[snapshot.number] = snapshot
        self.num_bytes += snapshot.num_bytes

    def discard(self, snapshot: Snapshot) -> None:
        if self._members.pop(snapshot.number, None) is not None:
            self.num_bytes -= snapshot.num_bytes
