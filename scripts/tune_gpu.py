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
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from bench_gpu_kernels import graph_of, replay_us
from decode_chain import Shape, State, Step, Weights

from splitrank.models.ops.gpu.launch import compile_ahead, noted_launches
from splitrank.models.ops.gpu.tiles import LIBRARY, Tile, TileTable, load_tiles

# Most expensive first.
ORDER = (
    "experts_up", "experts_down", "delta_step", "in_proj", "out_proj", "qkv_proj", "o_proj", "router", "head",
    "delta_inputs", "attention_decode", "route", "gated_norm", "add_norm",
)  # fmt: skip
GAIN = 0.0015  # of a step: less is noise


def tile(form: str, warps: int, stages: int = 1, **sizes: int) -> Tile:
    return Tile(warps, stages, True, form, MappingProxyType(sizes))


def fma(*rows_and_warps: tuple[int, int]) -> list[Tile]:
    return [tile("fma", warps, n=n) for n, warps in rows_and_warps]


def dots(rows: int, *sizes: tuple[int, ...]) -> list[Tile]:
    """n, k, stages, warps, and tokens of a block where they are not all rows."""
    every = max(8, 1 << (rows - 1).bit_length())
    return [tile("dot", w, st, n=n, k=k, t=min(t[0], every) if t else every) for n, k, st, w, *t in sizes]


def candidates(launch: str, rows: int) -> list[Tile]:
    """Tiles worth a try: what was best or near it at some batch size on an H100 or H200."""
    if launch in ("in_proj", "qkv_proj", "head"):
        return [*_wide(rows), *_library(launch, rows)]
    if launch in ("out_proj", "o_proj", "router"):
        return [*_narrow(rows), *_library(launch, rows)]
    if launch == "experts_up":
        if rows == 1:
            return fma((1, 2), (1, 4), (2, 2), (2, 4), (4, 4))
        up = ((64, 128, 2, 4), (64, 128, 3, 4), (64, 128, 4, 4), (32, 256, 3, 4), (32, 128, 4, 4))
        return [tile("dot", warps, stages, n=n, k=k) for n, k, stages, warps in up]
    if launch == "experts_down":
        if rows == 1:
            return fma((1, 1), (1, 4), (2, 1), (2, 2), (2, 4), (4, 2), (4, 4))
        down = ((64, 512, 2, 4), (64, 512, 3, 4), (32, 512, 3, 4), (64, 1024, 3, 4), (32, 1024, 3, 4), (64, 256, 2, 4))
        blocks = (
            (64, 128, 512, 4, 4),
            (64, 128, 1024, 4, 4),
            (64, 256, 512, 3, 4),
            (64, 128, 512, 5, 4),
            (64, 64, 512, 6, 4),
        )
        return [
            *(tile("dot", warps, stages, n=n, chunk=chunk) for n, chunk, stages, warps in down),
            *(tile("blocks", warps, stages, n=n, k=k, chunk=chunk) for n, k, chunk, stages, warps in blocks),
        ]
    if launch == "delta_step":
        sizes = (16, 1), (32, 1), (64, 2), (32, 2), (64, 4), (128, 4)
        return [tile(form, warps, v=v) for form in ("together", "apart") for v, warps in sizes]
    if launch == "attention_decode":
        return _attention(rows)
    if launch == "route":
        if rows <= 16:
            return [tile("together", warps, t=max(8, min(rows, 16))) for warps in (4, 8)]
        return [tile("apart", w, t=t, rows=r) for w, t, r in product((4, 8), (8, 16, 32), (2, 4)) if t <= rows // 2]
    if launch == "gated_norm":
        return [tile("", warps, heads=heads) for heads, warps in ((4, 2), (8, 4), (4, 4))]
    return [tile("", warps) for warps in (4, 8)]


def _wide(rows: int) -> list[Tile]:
    """Projections to many columns, and the head."""
    if rows == 1:
        return fma((4, 4), (4, 8), (8, 4), (8, 8))
    if rows <= 64:
        return dots(rows, (64, 64, 6, 4), (64, 128, 4, 4), (64, 128, 3, 4), (32, 128, 5, 4))
    if rows <= 128:
        return dots(rows, (64, 64, 4, 4), (64, 64, 6, 4, 64), (128, 64, 4, 8), (64, 64, 4, 4, 64), (128, 128, 3, 8))
    sizes = ((128, 64, 4, 8), (128, 64, 3, 4, 128), (64, 128, 4, 4, 128), (64, 64, 6, 4, 128), (128, 64, 3, 4, 64))
    return dots(rows, *sizes, (128, 64, 4, 8, 128))


def _narrow(rows: int) -> list[Tile]:
    """Projections to few columns: a block for each multiprocessor at most."""
    if rows == 1:
        return fma((1, 4), (4, 4), (8, 4), (8, 8))
    if rows <= 32:
        few = ((16, 256, 4, 4), (16, 256, 8, 4), (16, 512, 3, 4), (16, 512, 6, 4), (16, 128, 6, 4), (32, 256, 4, 4))
        return dots(rows, *few, (16, 256, 4, 4, 16))
    sizes = ((64, 128, 4, 4, 64), (64, 64, 6, 4, 64), (32, 256, 4, 4, 64), (32, 128, 6, 4, 64), (64, 128, 6, 4, 64))
    return dots(rows, *sizes, (64, 128, 4, 8, 64), (32, 128, 6, 4, 32))


def _library(launch: str, rows: int) -> list[Tile]:
    if rows <= 32:
        return []
    if launch == "head":
        return [tile(LIBRARY, warps, n=n) for n, warps in ((8192, 8), (4096, 4))]
    return [tile(LIBRARY, 4)]


def _attention(rows: int) -> list[Tile]:
    if rows <= 16:
        ways = product(("counted", "apart"), ((32, 8), (64, 8)), (4, 8))
    elif rows <= 64:
        ways = product(("counted",), ((32, 4), (32, 8), (64, 8)), (1, 2, 4))
    else:
        ways = product(("counted",), ((16, 4), (32, 4), (32, 8), (64, 8)), (1, 2, 4))
    streams = (
        (32, 4, 2),
        (32, 4, 3),
        (32, 4, 4),
        (64, 4, 2),
        (64, 8, 2),
        (64, 8, 3),
        (32, 8, 3),
        (16, 4, 4),
        (64, 4, 3),
    )
    streamed = [tile("streamed", warps, stages, t=t) for t, warps, stages in streams if rows > 16]
    return [tile(form, warps, t=t, parts=parts) for form, (t, warps), parts in ways] + streamed


def with_tile(table: TileTable, launch: str, rows: int, changed: Tile) -> TileTable:
    return replace(table, ranges=MappingProxyType({**table.ranges, launch: ((rows, changed),)}))


class Chain:
    """The step of one batch size on this GPU, with the table's tiles and changes to them."""

    def __init__(self, shape: Shape, weights: Weights, rows: int, table: TileTable) -> None:
        self.shape, self.weights, self.rows, self.table = shape, weights, rows, table
        self.state = State(shape, rows, 256, 64, weights.head.device, torch.bfloat16)

    def us(self, table: TileTable) -> float:
        step = Step(self.shape, self.weights, self.state, self.rows, table)
        return replay_us(graph_of(step), 0.12, 25)

    def tune(self, names: list[str], until: float, write: Any) -> None:
        best = self.us(self.table)
        write({"rows": self.rows, "us": round(best, 1)})
        for name in names:
            others: list[Tile | None] = [*candidates(name, self.rows), None]
            for other in others:
                if time.monotonic() > until:
                    write({"rows": self.rows, "out_of_time": name})
                    return
                if other is None:  # at last, the best with an early start or without
                    now = self.table.tile(name, self.rows)
                    other = replace(now, pdl=not now.pdl)
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
    weights = Weights(shape, meta, torch.bfloat16, 1)
    with noted_launches() as noted:
        for count in rows:
            state = State(shape, count, 256, 64, meta, torch.bfloat16)
            Step(shape, weights, state, count, table)()
            for name in names:
                for other in candidates(name, count):
                    for one in (other, replace(other, pdl=False)):
                        Step(shape, weights, state, count, with_tile(table, name, count, one))()
    calls = {call.variant: call for call in noted}
    for call in [call for number, call in enumerate(calls.values()) if number % parts == part]:
        try:
            compile_ahead(call)
        except Exception as error:
            print(f"tune_gpu: {call.name} {call.tile}: {str(error)[:200]}", file=sys.stderr)


def main() -> None:
    args = _arguments()
    table = load_tiles(torch.cuda.get_device_name())
    if args.compile:
        compile_all(Shape(num_layers=4).of_rank(args.tp), args.rows, args.launches, table, args.compile)
        return
    shape = Shape(num_layers=args.layers).of_rank(args.tp)
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
    parser.add_argument("--tp", type=int, default=1, help="widths of one of so many tensor ranks")
    parser.add_argument("--layers", type=int, default=40, help="fewer where memory is short")
    parser.add_argument("--limit-s", type=float, default=60, help="seconds for each batch size")
    parser.add_argument("--compile", metavar="I/N", help="only compile, every N-th kernel from I on")
    parser.add_argument("--output", type=Path, help="also append the lines to this file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
