"""Options of ``splitrank gsm8k``, and the layout syntax."""

from dataclasses import dataclass, fields, replace
from typing import Any

from splitrank.serving.options.config import COUNT, COUNT_OR_ZERO, EngineConfig, option


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One way to split the model: ``tp`` tensor ranks in each of ``pp`` stages."""

    tp: int = 1
    pp: int = 1

    @property
    def num_ranks(self) -> int:
        return self.tp * self.pp

    def __str__(self) -> str:
        return f"pp={self.pp}" if self.tp == 1 else f"tp={self.tp} pp={self.pp}"


def parse_layout(text: str) -> Layout:
    """``"pp=2"``, ``"tp=2"``, ``"tp=2 pp=2"`` or ``"tp=2,pp=2"``; ValueError otherwise."""
    sizes: dict[str, int] = {}
    for part in text.replace(",", " ").split():
        name, equals, number = part.partition("=")
        if name not in ("tp", "pp") or not equals or not (number.isascii() and number.isdigit()) or int(number) < 1:
            raise ValueError(f"layout {text!r}: {part!r} is neither tp=N nor pp=N with N at least 1")
        if name in sizes:
            raise ValueError(f"layout {text!r} gives {name} twice")
        sizes[name] = int(number)
    if not sizes:
        raise ValueError("a layout is empty; write for example pp=2 or 'tp=2 pp=2'")
    return Layout(**sizes)


def _not_shown(name: str) -> Any:
    """The engine's option of this name, which is refused here: no help shows it."""
    declared = EngineConfig.__dataclass_fields__[name]
    return option(declared.default, **{**declared.metadata, "help": ""})


@dataclass(frozen=True, kw_only=True)
class Gsm8kConfig(EngineConfig):
    """``splitrank gsm8k``."""

    tp: int = _not_shown("tp")
    pp: int = _not_shown("pp")
    pp_partition: tuple[int, ...] = _not_shown("pp_partition")
    layouts: tuple[str, ...] = option(("pp=1", "pp=2"), "layouts to compare: pp=1 pp=2 tp=2 'tp=2 pp=2'")
    data: str = option(
        "", "test questions, a jsonl file; if not given, test.jsonl beside the weights, else the hub's openai/gsm8k"
    )
    train: str = option("", "jsonl file that the shots come from; train.jsonl beside the test questions if not given")
    shots: int = option(
        5, "solved examples in front of each question: the first ones of the train file", bounds=COUNT_OR_ZERO
    )
    limit: int = option(0, "ask only the first N questions; 0: all", bounds=COUNT_OR_ZERO)
    concurrency: int = option(32, "questions open at once", bounds=COUNT)
    max_tokens: int = option(256, "longest answer in tokens", bounds=COUNT)
    report: str = option("", "write all numbers and texts into this JSON file")
    trace: bool = option(
        True, "where exact layouts differ, ask again with digests of every layer, to name the first layer and rank"
    )

    def __post_init__(self) -> None:
        if self.tp != 1 or self.pp != 1 or self.pp_partition:
            raise ValueError("tp, pp and pp_partition come from the layouts here; give --layouts instead")
        super().__post_init__()
        self.check_concurrency(self.concurrency)
        parsed = self.parsed_layouts()
        if not parsed:
            raise ValueError("layouts must name at least one layout, e.g. pp=1 pp=2")
        for index, layout in enumerate(parsed):
            if layout in parsed[:index]:
                raise ValueError(f"layout {layout} is given twice")

    def parsed_layouts(self) -> list[Layout]:
        return [parse_layout(text) for text in self.layouts]


def engine_configs(config: Gsm8kConfig, num_cores: int) -> list[EngineConfig]:
    """One engine config for each layout, all with the same threads: their number changes the bits of a GEMM. With
    several hosts, a layout with fewer stages than hosts runs on host 0 alone."""
    layouts = config.parsed_layouts()
    hosts = {layout: config.num_nodes if layout.pp >= config.num_nodes else 1 for layout in layouts}
    ranks_per_host = [max(1, layout.num_ranks // hosts[layout]) for layout in layouts]
    threads = config.threads_per_rank or max(1, min(num_cores // ranks for ranks in ranks_per_host))
    values = {field.name: getattr(config, field.name) for field in fields(EngineConfig)}
    shared = replace(EngineConfig(**values), threads_per_rank=threads)
    alone = replace(shared, nnodes=0, node_rank=0)
    return [replace(shared if hosts[layout] > 1 else alone, tp=layout.tp, pp=layout.pp) for layout in layouts]
