"""Draws loss and accuracy over the training's minutes, as the picture of the model card.

    python scripts/train_demo/plot_curves.py --curves build/train_demo/curves.jsonl --out configs/demo/curves.svg

Several curves are those of runs of which each began with the weights of the one before.
SVG, written here: no library to install, and a diff shows what changed.
"""

import argparse
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curves import read_curves

WIDTH, HEIGHT, MARGIN, GAP = 900, 320, 50, 70
_COLORS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b", "#17becf", "#7f7f7f")
Point = tuple[float, float]


@dataclass(frozen=True)
class Panel:
    """One picture of lines, its corner at ``left``; values from ``low`` to ``high`` over minutes to ``end``."""

    title: str
    left: float
    width: float
    end: float
    low: float
    high: float
    ticks: tuple[float, ...]

    def place(self, minute: float, value: float) -> Point:
        share = (value - self.low) / (self.high - self.low)
        return self.left + self.width * minute / self.end, HEIGHT - MARGIN - share * (HEIGHT - 2 * MARGIN)

    def frame(self) -> str:
        parts = [_text(self.left + self.width / 2, MARGIN - 20, self.title, "middle", 14)]
        for tick in self.ticks:
            x, y = self.place(0, tick)
            parts.append(f'<path d="M{x:.1f} {y:.1f}h{self.width:.1f}" stroke="#ddd"/>')
            parts.append(_text(x - 6, y + 4, f"{tick:g}", "end"))
        minutes = range(0, int(self.end) + 1, max(1, round(self.end / 6)))
        below = HEIGHT - MARGIN + 18
        parts += [_text(self.place(minute, self.low)[0], below, str(minute), "middle") for minute in minutes]
        parts.append(_text(self.left + self.width / 2, HEIGHT - 8, "minutes of training", "middle"))
        return "".join(parts)

    def line(self, points: list[Point], color: str) -> str:
        placed = " ".join("{:.1f},{:.1f}".format(*self.place(minute, value)) for minute, value in points)
        return f'<polyline points="{placed}" fill="none" stroke="{color}" stroke-width="1.5"/>'


def end_to_end(runs: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The lines of all runs, with the seconds since the first one's begin."""
    lines: list[dict[str, Any]] = []
    for run in runs:
        before = lines[-1]["seconds"] if lines else 0.0
        lines += [{**line, "seconds": before + line["seconds"]} for line in run]
    return lines


def draw(lines: list[dict[str, Any]]) -> str:
    """ValueError when no loss was recorded."""
    losses = [(line["seconds"] / 60, line["loss"]) for line in lines if "loss" in line]
    if not losses:
        raise ValueError("the curves hold no loss")
    end = max(line["seconds"] for line in lines) / 60
    half = (WIDTH - 2 * MARGIN - GAP) / 2
    left, right = _loss_panel(losses, end, half), _accuracy_panel(end, half)
    parts = [left.frame(), left.line([(minute, math.log10(loss)) for minute, loss in losses], _COLORS[0])]
    parts.append(right.frame())
    for index, (name, points) in enumerate(_accuracies(lines).items()):
        color = _COLORS[index % len(_COLORS)]
        parts.append(right.line(points, color))
        parts.append(_text(right.left + right.width, HEIGHT - MARGIN - 12 - 15 * index, name, "end", 12, color))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif">'
    return f'{head}<rect width="100%" height="100%" fill="white"/>{"".join(parts)}</svg>\n'


def _loss_panel(losses: list[Point], end: float, width: float) -> Panel:
    low = math.floor(math.log10(min(loss for _, loss in losses)))
    high = max(low + 1, math.ceil(math.log10(max(loss for _, loss in losses))))
    return Panel("loss of answers (powers of ten)", MARGIN, width, end, low, high, tuple(range(low, high + 1)))


def _accuracy_panel(end: float, width: float) -> Panel:
    ticks = (0, 0.25, 0.5, 0.75, 1.0)
    return Panel("right answers, small samples", MARGIN + width + GAP, width, end, 0, 1, ticks)


def _accuracies(lines: list[dict[str, Any]]) -> dict[str, list[Point]]:
    found: dict[str, list[Point]] = {}
    for line in lines:
        for name, value in line.get("accuracy", {}).items():
            found.setdefault(name, []).append((line["seconds"] / 60, value))
    return found


def _text(x: float, y: float, text: str, anchor: str, size: int = 12, color: str = "#333") -> str:
    style = f'text-anchor="{anchor}" font-size="{size}" fill="{color}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{text}</text>'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--curves", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.write_text(draw(end_to_end([read_curves(path) for path in arguments.curves])), encoding="utf-8")


if __name__ == "__main__":
    main()
