"""How each launch is cut into blocks: a committed table a GPU (configs/kernels), never a clock at run time.

A tile decides the order of sums, so it must be the same in every process and layout: it follows from the GPU's name,
the launch and the number of rows alone. ``scripts/bench_gpu_kernels.py`` measures them. No torch.

A table's section ``exact`` has one tile a launch, whatever the number of rows: then a row's sums have one order each.
"""

import tomllib
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

# A launch's forms, and the sizes that a tile of that form must name (powers of two).
Forms = dict[str, tuple[str, ...]]
LIBRARY = "library"  # the vendor's product, which has no blocks of ours
PROJECTION: Forms = {"fma": ("n",), "dot": ("n", "k", "t"), LIBRARY: ()}
LAUNCHES: dict[str, Forms] = {
    "add_norm": {"": ()},
    "gated_norm": {"": ("heads",)},
    "in_proj": PROJECTION,
    "qkv_proj": PROJECTION,
    "out_proj": PROJECTION,
    "o_proj": PROJECTION,
    "router": PROJECTION,
    "head": {**PROJECTION, LIBRARY: ("n",)},  # of the stored logits, n of a row in a block
    "prompt_proj": PROJECTION,  # any product of more rows than those above have ranges for
    "delta_inputs": {"": ()},  # of form "apart"
    "delta_step": {"together": ("v",), "apart": ("v",)},
    "attention_decode": {"counted": ("t", "parts"), "apart": ("t", "parts"), "streamed": ("t",)},
    "route": {"together": ("t",), "apart": ("t", "rows")},
    "experts_up": {"fma": ("n",), "dot": ("n", "k")},  # the tokens of a tile are those of "route"
    "experts_down": {"fma": ("n",), "dot": ("n", "chunk"), "blocks": ("n", "k", "chunk")},
    # Prompt tokens.
    "conv_chunk": {"": ("heads",)},
    "solve_blocks": {"": ()},
    "delta_chunk": {"": ("v",)},
    "prepare_attention": {"": ("t",)},
    "attention_chunk": {"": ("m", "n")},
    "sort_pairs": {"": ("t",)},
    "sorted_up": {"": ("n", "k")},
    "sorted_down": {"": ("n", "k")},
    "shared_activation": {"": ()},
}
_OPTIONS = {"up_to", "form", "warps", "stages", "pdl"}
# What changes no bit of a row: who computes a split or a run of columns, and forms that differ in nothing else.
_WITHOUT_EFFECT = ("parts", "chunk")
_ALIKE = {"counted": "apart"}
_INEXACT_FORMS = ("fma", "together", LIBRARY)  # for one number of rows, for few, or in the order of another's code
# Blocks that are halved for float32, whose numbers take twice the shared memory. Of the other launches half the stages
# are enough.
_HALVED_FOR_FLOAT32 = {"attention_chunk": ("m", "n"), "delta_chunk": ("v",), "sorted_up": ("n",), "sorted_down": ("n",)}
_WARPS = (1, 2, 4, 8, 16)
_MAX_STAGES = 8


@dataclass(frozen=True)
class Tile:
    """One launch's blocks: ``tile["n"]`` is the size that the kernel calls n.

    ``exact``: a block is no smaller where there are fewer rows, and the compiler fuses no product with a sum: it would
    do so in one place of a kernel and not in another.
    """

    num_warps: int
    num_stages: int = 1
    pdl: bool = False
    form: str = ""
    sizes: MappingProxyType[str, int] = field(default_factory=lambda: MappingProxyType({}))
    exact: bool = False

    def __getitem__(self, name: str) -> int:
        return self.sizes[name]


@dataclass(frozen=True)
class TileTable:
    """The tiles of one GPU: for each launch, ranges of rows in ascending order."""

    source: str  # the file
    note: str  # a line for the user where the GPU is not the one that was measured, else ""
    ranges: MappingProxyType[str, tuple[tuple[int, Tile], ...]]

    def tile(self, launch: str, rows: int) -> Tile:
        """The tile of ``launch`` for a step of ``rows`` rows; ``ValueError`` if the table ends below."""
        for up_to, tile in self.ranges[launch]:
            if rows <= up_to:
                return tile
        raise ValueError(f"{self.source}: {launch} ends at {self.ranges[launch][-1][0]} rows, the step has {rows}")


def tables_folder() -> Path:
    package = find_spec("splitrank")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).parent / "kernels"


def load_tiles(gpu: str, folder: Path | None = None, exact: bool = False, dtype: str = "bfloat16") -> TileTable:
    """The table for a GPU by its name, as ``torch.cuda.get_device_name`` gives it. ``exact``: one tile a launch.

    Tables are measured in bfloat16. In float32, which is there to compare with, their blocks are made to fit.
    A GPU without a table of its own gets that of its vendor which comes first by name, and a note that says so.
    ``ValueError`` names file, launch and key of what is wrong in a table.
    """
    folder = folder or tables_folder()
    files = {file: _read(file) for file in sorted(folder.glob("*.toml"))}
    for file, raw in files.items():
        if any(part in gpu for part in raw["gpus"]):
            return _table(file, raw, "", exact, dtype)
    vendor = "amd" if "AMD" in gpu or "Radeon" in gpu or gpu.startswith("gfx") else "nvidia"
    for file, raw in files.items():
        if raw["vendor"] == vendor:
            note = f"no tiles were measured on {gpu}: it gets those of {raw['gpus'][0]} ({file.name})"
            return _table(file, raw, note, exact, dtype)
    raise ValueError(f"{folder}: no table of tiles for {vendor}")


def _read(file: Path) -> dict[str, Any]:
    try:
        raw = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: not valid TOML: {error}") from None
    if {*raw, "exact"} != {"gpus", "vendor", "tiles", "exact"}:
        raise ValueError(f"{file}: has gpus, vendor, tiles and exact, not {', '.join(raw)}")
    if raw["vendor"] not in ("nvidia", "amd"):
        raise ValueError(f"{file}: vendor is nvidia or amd, not {raw['vendor']!r}")
    if not (isinstance(raw["gpus"], list) and raw["gpus"] and all(type(name) is str and name for name in raw["gpus"])):
        raise ValueError(f"{file}: gpus is a list of parts of GPU names, not {raw['gpus']!r}")
    return raw


def _table(file: Path, raw: dict[str, Any], note: str, exact: bool, dtype: str) -> TileTable:
    tiles = raw["tiles"] | (raw.get("exact", {}) if exact else {})
    if set(tiles) != set(LAUNCHES):
        missing, unknown = sorted(set(LAUNCHES) - set(tiles)), sorted(set(tiles) - set(LAUNCHES))
        raise ValueError(f"{file}: missing launches: {', '.join(missing)}; unknown ones: {', '.join(unknown)}")
    ranges = {launch: _ranges(f"{file}: {launch}", LAUNCHES[launch], rows) for launch, rows in tiles.items()}
    if exact:
        ranges = {launch: _exact(f"{file}: {launch}", found) for launch, found in ranges.items()}
    if dtype == "float32":
        ranges = {launch: _for_float32(launch, found) for launch, found in ranges.items()}
    return TileTable(file.name, note, MappingProxyType(ranges))


def _for_float32(launch: str, ranges: tuple[tuple[int, Tile], ...]) -> tuple[tuple[int, Tile], ...]:
    """The same ranges with blocks that fit."""
    halved = _HALVED_FOR_FLOAT32.get(launch, ())

    def fitting(tile: Tile) -> Tile:
        sizes = {name: size // 2 if name in halved else size for name, size in tile.sizes.items()}
        return replace(tile, num_stages=max(1, tile.num_stages // 2), sizes=MappingProxyType(sizes))

    return tuple((up_to, fitting(tile)) for up_to, tile in ranges)


def _exact(where: str, ranges: tuple[tuple[int, Tile], ...]) -> tuple[tuple[int, Tile], ...]:
    """The same ranges for the exact mode; ``ValueError`` if a row's sums would differ between them."""
    orders = set()
    for _, tile in ranges:
        if tile.form in _INEXACT_FORMS:
            raise ValueError(f"{where}: form {tile.form} is not for every number of rows; section exact needs another")
        sizes = frozenset(size for size in tile.sizes.items() if size[0] not in _WITHOUT_EFFECT)
        orders.add((_ALIKE.get(tile.form, tile.form), tile.num_warps, sizes))
    if len(orders) > 1:
        raise ValueError(f"{where}: {len(orders)} tiles for different numbers of rows; section exact needs one")
    return tuple((up_to, replace(tile, exact=True)) for up_to, tile in ranges)


def _ranges(where: str, forms: Forms, rows: list[dict[str, Any]]) -> tuple[tuple[int, Tile], ...]:
    found: list[tuple[int, Tile]] = []
    for row in rows:
        up_to = row.get("up_to", 0)
        if type(up_to) is not int or up_to <= (found[-1][0] if found else 0):
            raise ValueError(f"{where}: up_to must grow from range to range: {row}")
        found.append((up_to, _tile(where, forms, row)))
    if not found:
        raise ValueError(f"{where}: no ranges")
    return tuple(found)


def _tile(where: str, forms: Forms, row: dict[str, Any]) -> Tile:
    form = row.get("form", "")
    if form not in forms:
        raise ValueError(f"{where}: form must be one of {', '.join(map(repr, forms))}: {row}")
    sizes = {name: row[name] for name in row if name not in _OPTIONS}
    if set(sizes) != set(forms[form]):
        raise ValueError(f"{where}: sizes must be {', '.join(forms[form]) or 'none'}: {row}")
    for name, size in sizes.items():
        if type(size) is not int or size < 1 or size & (size - 1):
            raise ValueError(f"{where}: {name} must be a power of two: {row}")
    warps, stages, pdl = row.get("warps"), row.get("stages", 1), row.get("pdl", False)
    if warps not in _WARPS:
        raise ValueError(f"{where}: warps must be one of {', '.join(map(str, _WARPS))}: {row}")
    if type(stages) is not int or not 1 <= stages <= _MAX_STAGES:
        raise ValueError(f"{where}: stages must be 1 to {_MAX_STAGES}: {row}")
    if type(pdl) is not bool:
        raise ValueError(f"{where}: pdl must be true or false: {row}")
    return Tile(warps, stages, pdl, form, MappingProxyType(sizes))
