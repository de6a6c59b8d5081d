"""Documents as batches of token ids: encoded, sorted by length, filled to a fixed number of tokens.

Rows of one length and no packing: a DeltaNet layer carries its state across a row, so two documents in one row would
leak, and serving never sees that. The unit is a block, made from its number alone: whichever worker makes it, and
after a resume, it is the same.
"""

import bisect
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from documents import Document, text_of
from gsm8k_train import Solved
from mix import documents
from model_config import special_id
from tokenizers import Tokenizer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

# Row lengths: fine where most rows are, so that little is padding; few enough for torch.compile's shapes.
LENGTHS = (*range(80, 257, 16), *range(288, 513, 32), *range(576, 1025, 64), *range(1152, 2049, 128))
PADDING_WEIGHT = -1.0

Row = tuple[list[int], list[float]]
Batch = tuple[Tensor, Tensor]  # token ids [rows, length] int32, weights float32


@dataclass(frozen=True)
class DataOptions:
    tokenizer_file: str
    solved: list[Solved]
    seed: str
    tokens_per_batch: int
    documents_per_block: int


def encode(tokenizer: Tokenizer, document: Document) -> Row:
    """As a prompt is encoded when it is served: whole, so that a question mark and the line end behind it are one
    token. A token has the weight of the piece that it begins in."""
    encoding = tokenizer.encode(text_of(document), add_special_tokens=False)
    ends = list(itertools.accumulate(len(text) for text, _ in document))
    weights = [document[bisect.bisect_right(ends, start)][1] for start, _ in encoding.offsets]
    return encoding.ids, weights


def make_batches(rows: list[Row], tokens_per_batch: int, rng: random.Random) -> list[Batch]:
    """Rows that fill no batch of their length move up to the next; the last of them make a smaller batch, or none.
    Rows longer than ``LENGTHS`` are left out."""
    buckets: list[list[Row]] = [[] for _ in LENGTHS]
    for row in rows:
        if len(row[0]) <= LENGTHS[-1]:
            buckets[_bucket(row)].append(row)
    batches: list[Batch] = []
    carried: list[Row] = []
    for length, bucket in zip(LENGTHS, buckets, strict=True):
        waiting, per_batch = carried + bucket, max(1, tokens_per_batch // length)
        while len(waiting) >= per_batch:
            batches.append(_pad(waiting[:per_batch], length))
            del waiting[:per_batch]
        carried = waiting
    if sum(LENGTHS[_bucket(row)] for row in carried) * 4 > tokens_per_batch:  # a few rows are a noisy gradient
        batches.append(_pad(carried, LENGTHS[max(map(_bucket, carried))]))
    rng.shuffle(batches)
    return batches


def _bucket(row: Row) -> int:
    return bisect.bisect_left(LENGTHS, len(row[0]))


def _pad(rows: list[Row], length: int) -> Batch:
    padding = special_id("<|endoftext|>")
    ids = torch.full((len(rows), length), padding, dtype=torch.int32)
    weights = torch.full((len(rows), length), PADDING_WEIGHT)
    for index, (row_ids, row_weights) in enumerate(rows):
        ids[index, : len(row_ids)] = torch.tensor(row_ids, dtype=torch.int32)
        weights[index, : len(row_ids)] = torch.tensor(row_weights)
    return ids, weights


class Blocks(Dataset[list[Batch]]):
    """Block n without end."""

    def __init__(self, options: DataOptions) -> None:
        self._options = options
        self._tokenizer: Tokenizer | None = None

    def __getitem__(self, index: int) -> list[Batch]:
        options = self._options
        if self._tokenizer is None:  # in the worker
            self._tokenizer = Tokenizer.from_file(options.tokenizer_file)
        seed = f"{options.seed}/{index}"
        chosen = itertools.islice(documents(seed, options.solved), options.documents_per_block)
        rows = [encode(self._tokenizer, document) for document in chosen]
        return make_batches(rows, options.tokens_per_batch, random.Random(f"batches/{seed}"))


def batches_from(
    options: DataOptions, block: int, offset: int, num_workers: int, pin: bool
) -> Iterator[tuple[int, int, Batch]]:
    """(block, its batch's index, batch) without end, beginning there: where a checkpoint stopped."""
    loader: DataLoader[list[Batch]] = DataLoader(
        Blocks(options),
        batch_size=None,
        sampler=itertools.count(block),
        num_workers=num_workers,
        prefetch_factor=2 if num_workers else None,
        pin_memory=pin,
        multiprocessing_context="fork" if num_workers else None,
    )
    for number, made in enumerate(loader, block):
        for index, batch in enumerate(made):
            if number > block or index >= offset:
                yield number, index, batch
