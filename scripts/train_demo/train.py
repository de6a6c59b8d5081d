"""Trains the demo model on one GPU (or, tiny, on a CPU); stops in time, and goes on where it stopped.

    python scripts/train_demo/train.py --gsm8k build/train_demo/gsm8k_train.jsonl \
        --tokenizer build/train_demo/model/tokenizer.json --work /tmp/train_demo \
        --total-seconds 1300 --time-limit-s 560 --resume

``--work`` holds last.pt, curves.jsonl and, at every stop, export/ (hub-named weights). The learning rate follows
``--total-seconds`` of training over all commands together, or ``--total-steps``. Under ``torchrun`` each process has
a GPU and its own batches; the gradients are averaged.
"""

import argparse
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from batches import Batch, DataOptions, batches_from
from checkpoint import Progress, load, save
from curves import Curves
from data_parallel import Workers
from evaluation import Task, evaluate, make_tasks
from export import read_weights, write_weights
from gsm8k_train import read_train
from model import build_model, compile_parts, num_parameters, training_loss
from model_config import text_config, tiny_text_config
from muon import MuonAdamW, has_matrices
from schedule import DECAY_SHARE, WARMUP_STEPS, learning_rate
from tokenizers import Tokenizer

MAX_SKIPPED = 10  # steps in a row whose gradient is not finite


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Options:
    tokenizer: str = _option("", "tokenizer.json")
    work: str = _option("", "folder of checkpoint, curves and export")
    gsm8k: str = _option("", "GSM8K's train.jsonl; without it only generated text is learnt")
    init_from: str = _option("", "folder of exported weights to begin with, in place of random ones")
    resume: bool = _option(False, "go on from last.pt in the work folder, if it is there")
    total_seconds: float = _option(0.0, "length of the whole run, all commands together")
    total_steps: int = _option(0, "the same in steps")
    time_limit_s: float = _option(570.0, "this command ends by then, its last evaluation included")
    stop_after: int = _option(0, "this command ends after that step; 0: no limit")
    tokens_per_batch: int = _option(65_536, "padding included; rows of a batch have one length")
    accumulate: int = _option(1, "batches of a step: texts of different length and sort in one gradient")
    documents_per_block: int = _option(4_000, "documents that are sorted by length together")
    peak_rate: float = _option(4e-3, "learning rate after the warm-up")
    warmup_steps: int = _option(WARMUP_STEPS, "steps of the warm-up")
    decay_share: float = _option(DECAY_SHARE, "share of the run over whose end the learning rate falls to nothing")
    weight_decay: float = _option(0.05, "on matrices")
    balance: float = _option(0.01, "weight of the router's balance loss")
    clip: float = _option(1.0, "largest norm of the gradient")
    log_every: int = _option(20, "steps between lines of the curve")
    save_every_s: float = _option(120.0, "seconds between checkpoints")
    evaluate_every_s: float = _option(180.0, "seconds between evaluations; 0: none")
    evaluate_count: int = _option(96, "questions of each sort")
    workers: int = _option(14, "processes that make data; 0: none beside this one")
    seed: int = _option(20261122, "of weights and data")
    tiny: bool = _option(False, "a model for testing this program")
    float32: bool = _option(False, "no bf16 autocast")
    plain_forward: bool = _option(False, "transformers' own forward pass in training, to compare speed and loss")
    adamw: bool = _option(False, "AdamW for the matrices too, to compare")
    tf32: bool = _option(False, "TF32 for the delta rule's products")
    compile: bool = _option(False, "torch.compile for what is between the large products")


class Run:
    """One command's share of the training."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.started = time.monotonic()
        self.workers = Workers()
        self.device = self.workers.device
        self.work = Path(options.work)
        self.work.mkdir(parents=True, exist_ok=True)
        config = tiny_text_config() if options.tiny else text_config()
        self.model: Any = build_model(config, options.seed, fast=not options.plain_forward).to(self.device)
        self.model.train()
        self.optimizer = _make_optimizer(self.model, options)
        self.progress = self._begin()
        self.num_skipped = 0
        self.already = self.progress.seconds
        self.spent = 0.0
        self.curves = Curves(self.work / "curves.jsonl", self.progress.step) if self.workers.first else None
        solved, development = read_train(Path(options.gsm8k)) if options.gsm8k else ([], [])
        self.data = DataOptions(
            options.tokenizer, solved, str(options.seed), options.tokens_per_batch, options.documents_per_block
        )
        self.tokenizer = Tokenizer.from_file(options.tokenizer)
        wanted = options.evaluate_count if options.evaluate_every_s else 0
        self.tasks: dict[str, list[Task]] = make_tasks(wanted, development) if wanted else {}
        if self.workers.first:
            size = f"{num_parameters(self.model) / 1e6:.2f} M parameters"
            print(f"{size} on {self.workers.count} {self.device}, from {self.progress}", flush=True)

    def _begin(self) -> Progress:
        last = self.work / "last.pt"
        if self.options.resume and last.exists():
            return load(last, self.model, self.optimizer, self.device)
        if self.options.init_from:
            read_weights(self.model, Path(self.options.init_from))
        return Progress()

    def _look_at_clock(self) -> None:
        """``spent`` are the seconds of this command; of the first process, so that all stop at the same step."""
        self.spent = self.workers.agreed(time.monotonic() - self.started)
        self.progress.seconds = self.already + self.spent

    @property
    def share_done(self) -> float:
        if self.options.total_steps:
            return self.progress.step / self.options.total_steps
        return self.progress.seconds / self.options.total_seconds

    def finished(self, reserve_s: float) -> bool:
        stop_after = self.options.stop_after
        return (
            self.share_done >= 1.0
            or (stop_after > 0 and self.progress.step >= stop_after)
            or self.spent + reserve_s >= self.options.time_limit_s
        )

    def train(self) -> None:
        saving, evaluating = _Every(self.options.save_every_s), _Every(self.options.evaluate_every_s)
        logged = _Log()
        place = self.progress
        batches = batches_from(self.data, place.block, place.offset, self.options.workers, self.device == "cuda")
        evaluation_s = 20.0 if self.tasks else 1.0  # what a last evaluation is expected to take, until one was timed
        self._look_at_clock()
        while not self.finished(1.5 * evaluation_s + 5.0):
            chosen = list(itertools.islice(batches, self.options.accumulate * self.workers.count))
            logged.add(*self._step([batch for _, _, batch in chosen]))
            place.step += 1
            place.block, place.offset = chosen[-1][0], chosen[-1][1] + 1
            if place.step % self.options.log_every == 0:
                self._write(step=place.step, tokens=place.num_tokens, seconds=place.seconds, **logged.take())
            if saving.due(self.spent):
                self._save()
            if self.tasks and evaluating.due(self.spent):
                evaluation_s = self._evaluate()
            self._look_at_clock()
        self._save()
        if self.workers.first:
            write_weights(self.model, self.work / "export")
        if self.tasks:
            self._evaluate()
        self.workers.close()

    def _save(self) -> None:
        if self.workers.first:
            save(self.work / "last.pt", self.model, self.optimizer, self.progress)

    def _write(self, **fields: Any) -> None:
        if self.curves:
            self.curves.write(**fields)

    def _step(self, batches: list[Batch]) -> tuple[torch.Tensor, int]:
        """(loss, balance loss and gradient norm, still on the device; number of tokens)."""
        options, place = self.options, self.progress
        rate = learning_rate(options.peak_rate, place.step, self.share_done, options.warmup_steps, options.decay_share)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        mine = batches[self.workers.rank :: self.workers.count]
        losses = torch.stack([self._backward(*batch, 1 / len(mine)) for batch in mine]).mean(dim=0)
        self.workers.average_gradients(self.model)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), options.clip)
        if norm.isfinite():
            self.optimizer.step()
            self.num_skipped = 0
        else:
            self.num_skipped += 1
            if self.num_skipped > MAX_SKIPPED:
                raise FloatingPointError(f"no finite gradient in {MAX_SKIPPED} steps; go back to an earlier checkpoint")
        num_tokens = sum(ids.numel() for ids, _ in batches)
        place.num_tokens += num_tokens
        return torch.cat((losses, norm.detach()[None])), num_tokens

    def _backward(self, ids: torch.Tensor, weights: torch.Tensor, share: float) -> torch.Tensor:
        ids = ids.to(self.device, torch.int64, non_blocking=True)
        weights = weights.to(self.device, non_blocking=True)
        with torch.autocast(self.device, torch.bfloat16, enabled=not self.options.float32):
            loss, balance = training_loss(self.model, ids, weights, self.options.balance)
        ((loss + balance) * share).backward()  # type: ignore[no-untyped-call]
        return torch.stack((loss.detach(), balance.detach()))

    def _evaluate(self) -> float:
        """Seconds that it took. The first process asks; the others wait for its clock."""
        began = time.monotonic()
        if self.workers.first:
            scores = evaluate(self.model, self.tokenizer, self.tasks)
            self._write(
                step=self.progress.step,
                seconds=self.progress.seconds,
                accuracy={name: round(score.accuracy, 4) for name, score in scores.items()},
                unfinished={name: score.unfinished for name, score in scores.items()},
            )
        return self.workers.agreed(time.monotonic() - began)


class _Every:
    """True once ``seconds`` have passed since the last time; by a clock that all processes agree on."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._last = 0.0

    def due(self, now: float) -> bool:
        if now - self._last < self._seconds:
            return False
        self._last = now
        return True


class _Log:
    """Means since the last line; read from the device only then."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._since = time.monotonic()
        self._sums: list[torch.Tensor] = []
        self._num_tokens = 0

    def add(self, means: torch.Tensor, num_tokens: int) -> None:
        self._sums.append(means)
        self._num_tokens += num_tokens

    def take(self) -> dict[str, float]:
        loss, balance, norm = torch.stack(self._sums).mean(dim=0).tolist()
        speed = self._num_tokens / (time.monotonic() - self._since)
        self._reset()
        return {"loss": loss, "balance": balance, "norm": norm, "tokens_per_s": speed}


def _make_optimizer(model: torch.nn.Module, options: Options) -> torch.optim.Optimizer:
    groups: dict[str, dict[str, Any]] = {
        "matrices": {"params": [], "weight_decay": options.weight_decay, "muon": not options.adamw},
        "small matrices": {"params": [], "weight_decay": options.weight_decay},
        "others": {"params": [], "weight_decay": 0.0},
    }
    for name, weight in model.named_parameters():
        decays = weight.ndim >= 2 and "conv1d" not in name and "embed_tokens" not in name
        sort = "matrices" if has_matrices(name, weight) else "small matrices" if decays else "others"
        groups[sort]["params"].append(weight)
    fused = next(model.parameters()).is_cuda
    return MuonAdamW(groups.values(), options.peak_rate, fused)


def parse_options(arguments: list[str] | None = None) -> Options:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option in fields(Options):
        flag, text = "--" + option.name.replace("_", "-"), option.metadata["help"]
        if option.type is bool:
            parser.add_argument(flag, action="store_true", help=text)
        else:
            convert: Callable[[str], Any] = option.type  # type: ignore[assignment]
            parser.add_argument(flag, type=convert, default=option.default, help=f"{text} (default: {option.default})")
    options = Options(**vars(parser.parse_args(arguments)))
    if not options.tokenizer or not options.work:
        parser.error("--tokenizer and --work are needed")
    if bool(options.total_seconds) == bool(options.total_steps):
        parser.error("give either --total-seconds or --total-steps")
    return options


def main() -> None:
    options = parse_options()
    if options.compile:
        compile_parts()
    torch.set_float32_matmul_precision("high" if options.tf32 else "highest")
    Run(options).train()


if __name__ == "__main__":
    main()
