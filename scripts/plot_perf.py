"""Draws the engine's speed on a GPU beside vLLM's, as the picture of the README.

    python scripts/plot_perf.py [--rows configs/perf/engine_h200.jsonl] [--out configs/perf/engine_h200.svg]

One pair of bars a workload, in shares of vLLM's tokens a second; the first row of a workload counts.
SVG, written here: no library to install, and a diff shows what changed.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PERF = Path(__file__).parent.parent / "configs/perf"
WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 760, 300, 50, 50, 50
OURS, THEIRS = "#1f77b4", "#bbbbbb"


@dataclass(frozen=True)
class Pair:
    """Tokens a second of both engines at one workload."""

    name: str
    ours: float
    theirs: float

    @property
    def ratio(self) -> float:
        return self.ours / self.theirs


def read_pairs(rows: list[dict[str, Any]]) -> list[Pair]:
    """The workloads that both engines have rows of: decode by number of requests, then prefill."""
    speeds: dict[bool, dict[str, float]] = {True: {}, False: {}}
    for row in rows:
        if row["what"] in ("decode", "prefill"):
            name = f"decode of {row['batch']}" if row["what"] == "decode" else "prefill"
            speeds[row["engine"] == "splitrank"].setdefault(name, row["tokens_per_s"])
    names = sorted(speeds[True].keys() & speeds[False].keys(), key=lambda name: (name == "prefill", len(name), name))
    return [Pair(name, speeds[True][name], speeds[False][name]) for name in names]


def draw(pairs: list[Pair], title: str) -> str:
    """The picture; ``pairs`` is not empty."""
    top = max(1.0, *(pair.ratio for pair in pairs)) * 1.1
    unit, step = (HEIGHT - BOTTOM - TOP) / top, (WIDTH - LEFT) / len(pairs)
    parts = [_text(WIDTH / 2, 22, title, 14)]
    for tick in range(int(top * 2) + 1):
        y = HEIGHT - BOTTOM - tick / 2 * unit
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH}" stroke="#ddd"/>' + _text(LEFT - 16, y + 4, f"{tick / 2:g}"))
    for number, pair in enumerate(pairs):
        middle = LEFT + step * (number + 0.5)
        for value, tokens, color, at in (
            (pair.ratio, pair.ours, OURS, middle - step * 0.19),
            (1.0, pair.theirs, THEIRS, middle + step * 0.19),
        ):
            y, width = HEIGHT - BOTTOM - value * unit, step * 0.34
            parts.append(
                f'<rect x="{at - width / 2:.1f}" y="{y:.1f}" width="{width:.1f}" height="{value * unit:.1f}" '
                f'fill="{color}"/>' + _text(at, y - 5, f"{tokens:,.0f}")
            )
        parts.append(_text(middle, HEIGHT - BOTTOM + 18, pair.name) + _text(middle, HEIGHT - 14, f"{pair.ratio:.2f} x"))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif">'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>{"".join(parts)}</svg>\n'
    )


def _text(x: float, y: float, text: str, size: int = 11) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="middle" font-size="{size}">{text}</text>'


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, default=PERF / "engine_h200.jsonl")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows = [json.loads(line) for line in args.rows.read_text(encoding="utf-8").splitlines()]
    if not (pairs := read_pairs(rows)):
        print(f"plot_perf: {args.rows}: no workload with rows of both engines", file=sys.stderr)
        return 1
    peer = next(row["engine"] for row in rows if row["engine"] != "splitrank")
    title = f"tokens a second on one {rows[0]['card']}: splitrank (blue) and {peer} (grey)"
    (args.out or args.rows.with_suffix(".svg")).write_text(draw(pairs, title), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
