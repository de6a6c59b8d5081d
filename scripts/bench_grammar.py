"""What a grammar costs at the real vocabulary: once a rank, once a grammar, and a step; JSON lines on stdout.

    python scripts/bench_grammar.py [--vocab 248320] [--rounds 5]

Milliseconds of the thread's CPU time on one torch thread. The vocabulary is made of random words, a third of them not
Latin. A step is the whole sampling of one greedy row, with the grammar and without; its tokens are a given text's.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tokenizers
import torch
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from splitrank.serving.grammar.forms import ANY_OBJECT, after_thinking, json_grammar, regex_grammar
from splitrank.serving.grammar.matcher import Matchers
from splitrank.serving.protocol.sampling_params import SamplingParams
from splitrank.serving.rank.sampler import sample
from splitrank.serving.rank.sampling_state import SamplingState

OBJECT = '{"name": "a word or two", "counts": [1, 20, 300], "nested": {"yes": true}}'
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "counts": {"type": "array", "items": {"type": "integer"}},
        "nested": {"type": "object", "properties": {"yes": {"type": "boolean"}}, "required": ["yes"]},
    },
    "required": ["name", "counts", "nested"],
}


def grammars() -> dict[str, tuple[str, str]]:
    """By name: the grammar, and a text of it."""
    return {
        "JSON of a schema": (json_grammar(SCHEMA), OBJECT),
        "any JSON object": (json_grammar(ANY_OBJECT), OBJECT),
        "a schema of 300 properties": (json_grammar(wide_schema(300)), '{"property 0": "some text"}'),
        "behind a thought": (after_thinking(json_grammar(SCHEMA)), "first I think of something else, long and wide"),
        "a regular expression": (regex_grammar("[a-z ]{5,80}[.?!]"), "only small letters and spaces then a stop."),
    }


def wide_schema(count: int) -> dict[str, Any]:
    return {"type": "object", "properties": {f"property {index}": {"type": "string"} for index in range(count)}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, default=248_320)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        backend = write_vocabulary(Path(folder), args.vocab)
        matchers = Matchers(Path(folder), args.vocab, (args.vocab - 1,))
        begin = time.thread_time()
        matchers.matcher('start: "a"')
        emit(what="vocabulary, once a rank", ms=milliseconds_since(begin))
        logits = torch.randn(1, args.vocab, generator=torch.Generator().manual_seed(0))
        for name, (grammar, text) in grammars().items():
            begin = time.thread_time()
            matchers.matcher(grammar)
            emit(what=f"{name}: compiled", ms=milliseconds_since(begin))
            tokens = backend.encode(text).ids
            steps = [took for _ in range(args.rounds) for took in held_steps(matchers, grammar, logits, tokens)]
            emit(what=f"{name}: a step", **summary(steps))
        free = SamplingState([1], SamplingParams(temperature=0.0, max_tokens=10**6), ())
        emit(what="no grammar: a step", **summary([timed(logits, free) for _ in range(100)]))


def held_steps(matchers: Matchers, grammar: str, logits: torch.Tensor, tokens: list[int]) -> Iterator[float]:
    """Each step's time; the token that it samples is made the text's."""
    state = SamplingState([1], SamplingParams(temperature=0.0, max_tokens=10**6, grammar=grammar), (), matchers)
    for token in tokens:
        wanted = logits.clone()
        wanted[0, token] = 100.0
        yield timed(wanted, state, token)


def timed(logits: torch.Tensor, state: SamplingState, token: int | None = None) -> float:
    begin = time.thread_time()
    (row,) = sample(logits, [state])
    took = milliseconds_since(begin)
    assert row.failure is None, row.failure
    assert token in (None, row.token), f"{token} is not allowed"
    return took


def write_vocabulary(folder: Path, size: int) -> tokenizers.Tokenizer:
    """The bytes, random words, and a stop token; texts are encoded byte by byte, which is all that this needs."""
    draw, alphabet = random.Random(0), sorted(ByteLevel.alphabet())
    entries = dict.fromkeys(alphabet)
    while len(entries) < size - 1:
        letters = "etaoinshrdlucmfwypvbgkqjxz" if draw.random() < 0.67 else alphabet
        entries[draw.choice(("", "Ġ")) + "".join(draw.choices(letters, k=draw.randint(2, 8)))] = None
    backend = tokenizers.Tokenizer(BPE(vocab={entry: index for index, entry in enumerate(entries)}, merges=[]))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens(["<|im_end|>"])
    backend.save(str(folder / "tokenizer.json"))
    return backend


def milliseconds_since(begin: float) -> float:
    return round(1000 * (time.thread_time() - begin), 3)


def summary(steps: list[float]) -> dict[str, float]:
    return {"median_ms": statistics.median(steps), "largest_ms": max(steps)}


def emit(**line: Any) -> None:
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
