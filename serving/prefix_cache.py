"""Prompt prefixes that requests share: which are kept on the ranks as snapshots, and where a new one is worth taking.

A recurrent state cannot be cut at an earlier token, so a prefix can be reused only from where its state was saved. To
save it everywhere would cost a state every block. But where two prompts part shows when the second one comes: it is
computed up to there, its state is saved, and every later prompt with that prefix begins from the copy (the idea is that
of Marconi, Pan et al. 2024, arXiv 2411.19379). A snapshot is a copy, like a swapped request: nothing is shared, so
nothing is counted.

Counts and ids only, no torch: the copies lie in the ranks' host memory, and every rank has the same ones.
"""

import hashlib
from array import array
from collections import OrderedDict
from dataclasses import dataclass

from splitrank.serving.cache import pages_needed
from splitrank.serving.messages import LaunchSpec

MAX_SEEN = 16_384  # blocks of earlier prompts that are remembered: some MB

Digest = bytes


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The first ``num_tokens`` tokens of some prompt, to be had from step ``step`` + 1 on."""

    number: int
    num_tokens: int
    num_bytes: int
    step: int


@dataclass(frozen=True, slots=True)
class Match:
    """What is known of a prompt. ``branch``: tokens after which its state is to be saved; 0: nowhere."""

    snapshot: Snapshot | None
    branch: int
    branch_digest: Digest = b""


class PrefixCache:
    """Least recently used snapshots make room, in bytes of the fullest rank. A budget of 0 switches it off."""

    def __init__(self, spec: LaunchSpec) -> None:
        self._spec = spec
        self._seen: OrderedDict[Digest, None] = OrderedDict()
        self._snapshots: OrderedDict[Digest, Snapshot] = OrderedDict()
        self._pending: set[Digest] = set()  # somebody is on the way to save it
        self._num_bytes = 0
        self._next_number = 0

    def blocks(self, prompt: list[int]) -> list[Digest]:
        """A digest for each whole block, of all tokens up to its end; what ``peek`` and ``match`` ask for.

        Without the last token: something must be computed to sample from. Cryptographic: a collision would answer from
        another prompt.
        """
        if not self._spec.prefix_cache_bytes:
            return []
        size, digests = self._spec.prefix_block_size, [b""]
        for end in range(size, len(prompt), size):
            block = array("q", prompt[end - size : end]).tobytes()
            digests.append(hashlib.blake2b(digests[-1] + block, digest_size=16).digest())
        return digests[1:]

    def peek(self, digests: list[Digest], step: int) -> int:
        """Tokens that a prompt admitted at ``step`` would not have to compute."""
        return (self._last_ready(digests, step) + 1) * self._spec.prefix_block_size

    def match(self, digests: list[Digest], step: int) -> Match:
        """Call once, when a prompt is admitted at ``step``: it is remembered for later ones."""
        hit = self._last_ready(digests, step)
        seen = next((i for i in reversed(range(len(digests))) if digests[i] in self._seen), -1)
        self._remember(digests)
        snapshot = None
        if hit >= 0:
            self._snapshots.move_to_end(digests[hit])
            snapshot = self._snapshots[digests[hit]]
        branch = (seen + 1) * self._spec.prefix_block_size
        if seen <= hit or not self._is_wanted(digests[seen], branch):
            return Match(snapshot, 0)
        self._pending.add(digests[seen])
        return Match(snapshot, branch, digests[seen])

    def keep(self, digest: Digest, num_tokens: int, step: int) -> tuple[Snapshot, list[int]]:
        """The state after ``num_tokens`` is saved in ``step``: its snapshot, and the numbers of those that leave."""
        self._pending.discard(digest)
        snapshot = Snapshot(self._next_number, num_tokens, self._bytes_of(num_tokens), step)
        self._next_number += 1
        dropped = []
        while self._num_bytes + snapshot.num_bytes > self._spec.prefix_cache_bytes:
            _, old = self._snapshots.popitem(last=False)
            self._num_bytes -= old.num_bytes
            dropped.append(old.number)
        self._snapshots[digest] = snapshot
        self._num_bytes += snapshot.num_bytes
        return snapshot, dropped

    def forgo(self, digest: Digest) -> None:
        """The request that was to save it has ended before."""
        self._pending.discard(digest)

    def _last_ready(self, digests: list[Digest], step: int) -> int:
        """The last block that a snapshot of an earlier step reaches; -1: none does."""
        for index in reversed(range(len(digests))):
            found = self._snapshots.get(digests[index])
            if found is not None and found.step < step:
                return index
        return -1

    def _is_wanted(self, digest: Digest, num_tokens: int) -> bool:
        is_coming = digest in self._pending or digest in self._snapshots
        return not is_coming and self._bytes_of(num_tokens) <= self._spec.prefix_cache_bytes

    def _bytes_of(self, num_tokens: int) -> int:
        spec = self._spec
        return spec.state_bytes + pages_needed(num_tokens, spec.page_size) * spec.kv_page_bytes

    def _remember(self, digests: list[Digest]) -> None:
        for digest in digests:
            self._seen[digest] = None
            self._seen.move_to_end(digest)
        while len(self._seen) > MAX_SEEN:
            self._seen.popitem(last=False)
