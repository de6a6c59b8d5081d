"""An answer as a row of blocks: thoughts, text, calls of tools. The APIs of agents stream it so."""

import uuid
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from splitrank.serving.text.text_engine import TextOutput

BlockKind = Literal["thinking", "text", "call"]


@dataclass
class Block:
    """``name`` of the called tool; ``text`` is a call's arguments as JSON."""

    index: int
    kind: BlockKind
    name: str = ""
    key: str = field(default_factory=lambda: uuid.uuid4().hex)  # for ids
    pieces: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.pieces)


class Step(NamedTuple):
    """One block ``begins``, gains ``text``, or ``ends``."""

    action: Literal["begins", "gains", "ends"]
    block: Block
    text: str = ""


class Blocks:
    """``add`` the outputs of one choice."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self._open: Block | None = None

    def add(self, output: TextOutput) -> list[Step]:
        steps: list[Step] = []
        if output.reasoning:
            steps += self._gain("thinking", output.reasoning)
        if output.text:
            steps += self._gain("text", output.text)
        for delta in output.calls:
            steps += self._begin("call", delta.name) if delta.name is not None else []
            steps += self._gain("call", delta.arguments) if delta.arguments else []
        return steps + (self.end() if output.finish_reason is not None else [])

    def end(self) -> list[Step]:
        """Ends the open block."""
        block, self._open = self._open, None
        return [] if block is None else [Step("ends", block)]

    def _begin(self, kind: BlockKind, name: str = "") -> list[Step]:
        ended = self.end()
        self._open = Block(len(self.blocks), kind, name)
        self.blocks.append(self._open)
        return [*ended, Step("begins", self._open)]

    def _gain(self, kind: BlockKind, text: str) -> list[Step]:
        begun = self._begin(kind) if self._open is None or self._open.kind != kind else []
        assert self._open is not None
        self._open.pieces.append(text)
        return [*begun, Step("gains", self._open, text)]
