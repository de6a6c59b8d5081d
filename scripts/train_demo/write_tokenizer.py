"""Trains the tokenizer on the mix and writes what the demo needs beside the weights.

    python scripts/train_demo/write_tokenizer.py --gsm8k build/train_demo/gsm8k_train.jsonl --out build/train_demo/model

tokenizer.json, tokenizer_config.json, chat_template.jinja, config.json, generation_config.json. Byte-level BPE of
4,044 entries and the 26 special tokens, as demo_tokenizer.py has them.
"""

import argparse
import itertools
import json
import re
import shutil
from pathlib import Path

from demo_tokenizer import SPECIAL_TOKENS, train_tokenizer, write_tokenizer_files
from documents import text_of
from gsm8k_train import Solved, read_train
from mix import documents
from model_config import generation_config, hub_config, max_positions

NUM_DOCUMENTS = 12_000
_DEMO = Path(__file__).resolve().parents[2] / "configs" / "demo"
_SPECIAL = re.compile("|".join(map(re.escape, SPECIAL_TOKENS)))  # no word parts of their names


def sample_texts(solved: list[Solved], num_documents: int, seed: str) -> list[str]:
    """Generated text and as much GSM8K as there is: its words are most of the vocabulary."""
    generated = (
        _SPECIAL.sub("\n", text_of(document)) for document in itertools.islice(documents(seed, []), num_documents)
    )
    return [*generated, *(text for one in solved for text in (one.question, one.answer))]


def write_all(folder: Path, solved: list[Solved], num_documents: int, seed: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(sample_texts(solved, num_documents, seed))
    write_tokenizer_files(tokenizer, folder, max_positions())
    for name, value in (("config.json", hub_config()), ("generation_config.json", generation_config())):
        (folder / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    shutil.copyfile(_DEMO / "chat_template.jinja", folder / "chat_template.jinja")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gsm8k", type=Path, required=True, help="GSM8K's train.jsonl")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--documents", type=int, default=NUM_DOCUMENTS)
    parser.add_argument("--seed", default="tokenizer")
    arguments = parser.parse_args()
    training, _ = read_train(arguments.gsm8k)
    write_all(arguments.out, training, arguments.documents, arguments.seed)
    print(f"{arguments.out}: {', '.join(sorted(path.name for path in arguments.out.iterdir()))}")


if __name__ == "__main__":
    main()
