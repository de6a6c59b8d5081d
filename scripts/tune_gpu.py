"""Finds the tiles of the decode kernels on this GPU, in the chain of a whole step: what wins alone need not win there.

    python scripts/tune_gpu.py --rows 8 32 --output tiles.jsonl [--launches experts_up ...] [--limit-s 60]
    python scripts/tune_gpu.py --rows 8 32 --compile 3/16      # fills the compile cache, one of 16 processes

One launch after the other, a step of descent each: its candidates are tried in a graph of the whole step, and the best
stays. Prints a JSON line a try and, at the end of each batch size, the rows for configs/kernels.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from bench_gpu_kernels import graph_of, replay_us
from decode_chain import Shape, State, Step, Weights

from splitrank.models.ops.gpu import launch as border
from splitrank.models.ops.gpu.launch import Call
from splitrank.models.ops.gpu.tiles import Tile, TileTable, load_tiles

# Most expensive first.
ORDER = (
    "experts_up", "experts_down", "delta_step", "in_proj", "out_proj", "qkv_proj", "o_proj", "router", "head",
    "attention_decode", "route", "gated_norm", "add_norm",
)  # fmt: skip
GAIN = 0.0015  # of a step: less is noise


def fma(*rows_and_warps: tuple[int, int]) -> list[Tile]:
    return [tile("fma", warps, n=n) for n, warps in rows_and_warps]


def tile(form: str, warps: int, stages: int = 1, **sizes: int) -> Tile:
    return Tile(warps, stages, True, form, MappingProxyType(sizes))


def dots(rows: int, sizes: list[tuple[int, int, int, int]]) -> list[Tile]:
    """n, k, stages, warps; one block of tokens up to 128 rows, above also two."""
    t = max(8, 1 << (rows - 1).bit_length())
    return [
        tile("dot", warps, stages, n=n, k=k, t=tokens)
        for n, k, stages, warps in sizes
        for tokens in ((t,) if rows <= 64 else (t // 2, t))
        if (n + tokens) * k * 2 * (stages - 1) <= 200 * 2**10 and n * tokens <= 128 * 256
    ]


NARROW = [(16, 256, 4, 4), (16, 512, 3, 4), (16, 128, 6, 4), (32, 256, 3, 4), (32, 128, 5, 4), (64, 128, 3, 4)]
WIDE = [
    (64, 128, 4, 4),
    (64, 128, 3, 4),
    (64, 64, 6, 4),
    (32, 256, 3, 4),
    (32, 128, 5, 4),
    (128, 64, 4, 8),
    (128, 64, 4, 4),
    (128, 128, 3, 8),
]
MANY = [(64, 64, 4, 4), (64, 128, 3, 4), (128, 64, 3, 8), (128, 64, 4, 8), (128, 128, 2, 8), (32, 128, 4, 4)]


def candidates(launch: str, rows: int, now: Tile) -> Iterator[Tile]:
    """Other tiles worth a try, then the one in use with and without an early start."""
    yield from _sizes(launch, rows)
    yield replace(now, pdl=not now.pdl)


def _sizes(launch: str, rows: int) -> list[Tile]:
    few = rows == 1
    if launch in ("in_proj", "qkv_proj", "head"):
        return fma((2, 4), (4, 4), (4, 8), (8, 4), (8, 8), (16, 8)) if few else dots(rows, WIDE if rows <= 32 else MANY)
    if launch in ("out_proj", "o_proj", "router"):
        return (
            fma((1, 4), (2, 4), (4, 4), (4, 8), (8, 8)) if few else dots(rows, NARROW if rows <= 32 else NARROW + MANY)
        )
    if launch == "experts_up":
        if few:
            return fma((1, 2), (1, 4), (2, 2), (2, 4), (2, 8), (4, 4), (4, 8))
        sizes = [
            (64, 128, 3),
            (64, 128, 2),
            (64, 64, 4),
            (32, 128, 4),
            (32, 256, 2),
            (128, 64, 3),
            (16, 256, 3),
            (32, 128, 3),
        ]
        return [
            tile("dot", warps, stages, n=n, k=k)
            for (n, k, stages), warps in product(sizes, (4, 8))
            if warps == 4 or n > 32
        ]
    if launch == "experts_down":
        if few:
            return fma((1, 1), (1, 2), (1, 4), (2, 2), (2, 4), (4, 4), (2, 8))
        sizes = [
            (64, 128, 4),
            (64, 256, 2),
            (64, 256, 3),
            (128, 128, 3),
            (128, 64, 5),
            (32, 256, 3),
            (32, 128, 5),
            (64, 512, 2),
            (128, 256, 2),
        ]
        return [
            tile("dot", warps, stages, n=n, k=k)
            for (n, k, stages), warps in product(sizes, (4, 8))
            if warps == 4 or n > 32
        ]
    if launch == "delta_step":
        plain = [(16, 1), (32, 1), (32, 2), (64, 2), (64, 4), (128, 8), (128, 4)]
        return [tile("plain", warps, v=v) for v, warps in plain] + [tile("normed", warps) for warps in (4, 8, 16)]
    if launch == "attention_decode":
        parts = (8, 32) if rows <= 8 else (1, 4, 8) if rows <= 64 else (1, 4)
        ways = product(("counted", "apart"), ((32, 4), (32, 8), (64, 8)), parts)
        return [tile(form, warps, t=t, parts=p) for form, (t, warps), p in ways if p > 1 or form == "counted"]
    if launch == "route":
        apart = [
            tile("apart", warps, t=t, rows=r) for t, r, warps in product((8, 16, 32), (1, 4), (4,)) if t <= max(8, rows)
        ]
        together = [tile("together", warps, t=min(rows, 16)) for warps in (4, 8, 16)] if 1 < rows <= 32 else []
        return [] if few else together + apart
    if launch == "gated_norm":
        return [tile("", warps, heads=heads) for heads, warps in ((4, 2), (8, 4), (4, 4), (16, 8))]
    return [tile("", warps) for warps in (4, 8, 16)]


def with_tile(table: TileTable, launch: str, rows: int, changed: Tile) -> TileTable:
    return replace(table, ranges=MappingProxyType({**table.ranges, launch: ((rows, changed),)}))


class Chain:
    """The step of one batch size on this GPU, with the table's tiles and changes to them."""

    def __init__(self, shape: Shape, weights: Weights, rows: int, table: TileTable) -> None:
        self.shape, self.weights, self.rows, self.table = shape, weights, rows, table
        self.state = State(shape, rows, 256, 64, weights.head.device, torch.bfloat16)

    def us(self, table: TileTable) -> float:
        step = Step(self.shape, self.weights, self.state, self.rows, table)
        return replay_us(graph_of(step), 0.3, 40)

    def tune(self, names: list[str], until: float, write: Any) -> None:
        best = self.us(self.table)
        write({"rows": self.rows, "us": round(best, 1)})
        for name in names:
            for other in candidates(name, self.rows, self.table.tile(name, self.rows)):
                if time.monotonic() > until:
                    write({"rows": self.rows, "out_of_time": name})
                    return
                table = with_tile(self.table, name, self.rows, other)
                try:
                    us = self.us(table)
                except Exception as error:
                    write(
                        {"rows": self.rows, "launch": name, "tile": as_row(self.rows, other), "error": str(error)[:200]}
                    )
                    continue
                write({"rows": self.rows, "launch": name, "tile": as_row(self.rows, other), "us": round(us, 1)})
                if us < best * (1 - GAIN):
                    best, self.table = us, table


def as_row(rows: int, one: Tile) -> str:
    """As configs/kernels has it."""
    form = f'form = "{one.form}", ' if one.form else ""
    sizes = "".join(f"{name} = {size}, " for name, size in one.sizes.items())
    stages = f"stages = {one.num_stages}, " if one.num_stages > 1 else ""
    return f"{{ up_to = {rows}, {form}{sizes}warps = {one.num_warps}, {stages}pdl = {str(one.pdl).lower()} }}"


def compile_all(shape: Shape, rows: list[int], names: list[str], table: TileTable, share: str) -> None:
    """Compiles every ``share`` of what ``tune`` would launch, without launching it."""
    part, parts = map(int, share.split("/"))
    meta = torch.device("meta")
    weights, calls = Weights(shape, meta, torch.bfloat16, 1), dict[str, Call]()

    def note(call: Call) -> None:
        constants = {k: v for k, v in call.arguments.items() if not isinstance(v, torch.Tensor)}
        calls[f"{call.name} {call.tile} {constants}"] = call

    border.run = note
    for count in rows:
        state = State(shape, count, 256, 64, meta, torch.bfloat16)
        Step(shape, weights, state, count, table)()
        for name in names:
            for other in candidates(name, count, table.tile(name, count)):
                Step(shape, weights, state, count, with_tile(table, name, count, other))()
    for call in [call for number, call in enumerate(calls.values()) if number % parts == part]:
        pdl = {"launch_pdl": True} if call.tile.pdl else {}
        try:
            options = border.options_of(call.tile) | pdl
            call.kernel.warmup(**call.arguments, PDL=call.tile.pdl, grid=call.grid, **options)
        except Exception as error:
            print(f"tune_gpu: {call.name} {call.tile}: {str(error)[:200]}", file=sys.stderr)


def main() -> None:
    args = _arguments()
    table = load_tiles(torch.cuda.get_device_name())
    if args.compile:
        compile_all(Shape(num_layers=4), args.rows, args.launches, table, args.compile)
        return
    shape = Shape(num_layers=args.layers)
    weights = Weights(shape, torch.device("cuda"), torch.bfloat16, args.layers)

    def write(line: dict[str, Any]) -> None:
        print(json.dumps(line), flush=True)
        if args.output:
            with args.output.open("a", encoding="utf-8") as out:
                out.write(json.dumps(line) + "\n")

    for rows in args.rows:
        chain = Chain(shape, weights, rows, table)
        chain.tune(args.launches, time.monotonic() + args.limit_s, write)
        for name in args.launches:
            write({"rows": rows, "launch": name, "best": as_row(rows, chain.table.tile(name, rows))})
        del chain
        torch.cuda.empty_cache()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 8, 32, 64, 128, 256], help="batch sizes")
    parser.add_argument("--launches", nargs="+", default=list(ORDER), choices=ORDER)
    parser.add_argument("--layers", type=int, default=40, help="fewer where memory is short")
    parser.add_argument("--limit-s", type=float, default=60, help="seconds for each batch size")
    parser.add_argument("--compile", metavar="I/N", help="only compile, every N-th kernel from I on")
    parser.add_argument("--output", type=Path, help="also append the lines to this file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
