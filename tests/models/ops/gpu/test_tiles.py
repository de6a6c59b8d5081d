"""Tables of tiles: what is read, what is refused, and which table a GPU gets."""

from pathlib import Path

import pytest

from splitrank.models.ops.gpu.tiles import LAUNCHES, load_tiles, tables_folder

ROWS = (1, 2, 3, 4, 8, 16, 32, 64, 128, 255, 256)


def test_every_table_has_a_tile_for_every_launch_and_batch() -> None:
    files = sorted(tables_folder().glob("*.toml"))
    assert [file.name for file in files[:2]] == ["h100.toml", "h200.toml"]
    for gpu in ("NVIDIA H100 80GB HBM3", "NVIDIA H200", "AMD Instinct MI300X"):
        table = load_tiles(gpu)
        assert not table.note
        assert all(table.tile(launch, rows).num_warps for launch in LAUNCHES for rows in ROWS)


def test_a_gpu_gets_its_own_table() -> None:
    assert load_tiles("NVIDIA H200").source == "h200.toml"
    assert load_tiles("NVIDIA H100 80GB HBM3").source == "h100.toml"


def test_an_unknown_gpu_gets_its_vendors_and_a_word() -> None:
    table = load_tiles("NVIDIA A100-SXM4-40GB")
    assert table.source == "h100.toml"
    assert table.note == "no tiles were measured on NVIDIA A100-SXM4-40GB: it gets those of NVIDIA H100 (h100.toml)"
    assert load_tiles("AMD Radeon PRO W7900").source == "mi300.toml"


def test_more_rows_than_the_table_has_are_refused() -> None:
    table = load_tiles("NVIDIA H200")
    with pytest.raises(ValueError, match=r"^h200\.toml: in_proj ends at 256 rows, the step has 257$"):
        table.tile("in_proj", 257)


def test_a_table_cannot_be_changed() -> None:
    table = load_tiles("NVIDIA H200")
    with pytest.raises(TypeError):
        table.ranges["in_proj"] = ()  # type: ignore[index]
    with pytest.raises(TypeError):
        table.tile("in_proj", 1).sizes["n"] = 8  # type: ignore[index]


def row(launch: str) -> str:
    form, sizes = next(iter(LAUNCHES[launch].items()))
    return f'{{ up_to = 256, form = "{form}", ' + "".join(f"{name} = 4, " for name in sizes) + "warps = 8, pdl = true }"


FMA = '{ up_to = 2, form = "fma", n = 4, warps = 8, pdl = true },'
NORM = f"add_norm = [{row('add_norm')}]"
TABLE = 'gpus = ["NVIDIA H200"]\nvendor = "nvidia"\n[tiles]\n' + "".join(
    f"{launch} = [{FMA if launch == 'in_proj' else ''}{row(launch)}]\n" for launch in LAUNCHES
)


def test_the_table_of_these_tests_is_right(tmp_path: Path) -> None:
    (tmp_path / "h200.toml").write_text(TABLE)
    assert load_tiles("NVIDIA H200", tmp_path).tile("in_proj", 2)["n"] == 4


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[tiles]", "[tiles", "not valid TOML"),
        ('vendor = "nvidia"', 'vendor = "intel"', "vendor is nvidia or amd, not 'intel'"),
        ('gpus = ["NVIDIA H200"]', "gpus = []", "gpus is a list of parts of GPU names"),
        (
            'vendor = "nvidia"',
            'vendor = "nvidia"\nclock = 1',
            "has gpus, vendor, tiles and exact, not gpus, vendor, clock, tiles",
        ),
        (NORM, "", "missing launches: add_norm; unknown ones: "),
        (NORM, f"{NORM}\nnorm = []", "unknown ones: norm"),
        (NORM, "add_norm = []", "add_norm: no ranges"),
        (FMA, FMA.replace("up_to = 2", "up_to = 0"), "in_proj: up_to must grow"),
        (FMA, FMA.replace("up_to = 2", "up_to = 256"), "in_proj: up_to must grow"),
        (FMA, FMA.replace('"fma"', '"fast"'), "in_proj: form must be one of 'fma', 'dot', 'library'"),
        (FMA, FMA.replace("n = 4", "m = 4"), "in_proj: sizes must be n"),
        (FMA, FMA.replace("n = 4", "n = 3"), "in_proj: n must be a power of two"),
        (FMA, FMA.replace("n = 4", "n = true"), "in_proj: n must be a power of two"),
        (FMA, FMA.replace("warps = 8", "warps = 3"), "in_proj: warps must be one of 1, 2, 4, 8, 16"),
        (FMA, FMA.replace("warps = 8", "warps = 8, stages = 9"), "in_proj: stages must be 1 to 8"),
        (FMA, FMA.replace("pdl = true", "pdl = 1"), "in_proj: pdl must be true or false"),
    ],
)
def test_a_wrong_table_is_refused_by_file_launch_and_key(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in TABLE
    file = tmp_path / "h200.toml"
    file.write_text(TABLE.replace(old, new))
    with pytest.raises(ValueError, match=message) as caught:
        load_tiles("NVIDIA H200", tmp_path)
    assert str(file) in str(caught.value)


def test_every_table_has_one_tile_a_launch_for_the_exact_mode() -> None:
    for gpu in ("NVIDIA H100 80GB HBM3", "NVIDIA H200", "AMD Instinct MI300X"):
        table = load_tiles(gpu, exact=True)
        assert all(tile.exact for ranges in table.ranges.values() for _, tile in ranges)
        assert not any(tile.exact for ranges in load_tiles(gpu).ranges.values() for _, tile in ranges)
        assert table.tile("prompt_proj", 8192).form == "dot"


DOT = 'form = "dot", n = 4, k = 4, t = 4'
EXACT = "[exact]\n" + "".join(
    f'{launch} = [{{ up_to = 256, {rest}, warps = 8 }}]\n'
    for launch, rest in {
        **dict.fromkeys(("in_proj", "qkv_proj", "out_proj", "o_proj", "router", "head", "prompt_proj"), DOT),
        "experts_up": 'form = "dot", n = 4, k = 4',
        "experts_down": 'form = "blocks", n = 4, k = 4, chunk = 4',
        "route": 'form = "apart", t = 4, rows = 4',
        "delta_step": 'form = "apart", v = 4',
    }.items()
)  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[exact]", "[exact]", ""),
        (f"in_proj = [{{ up_to = 256, {DOT}, warps = 8 }}]\n", "", "in_proj: form fma is not for every number of rows"),
        (", rows = 4", "", "route: sizes must be t, rows"),
        (
            'form = "apart", t = 4, rows = 4',
            'form = "together", t = 4',
            "route: form together is not for every number of rows",
        ),
        (
            f"router = [{{ up_to = 256, {DOT}",
            f"router = [{{ up_to = 8, {DOT}, warps = 4 }}, {{ up_to = 256, {DOT}",
            "router: 2 tiles for different numbers of rows; section exact needs one",
        ),
        (
            "chunk = 4, warps = 8 }",
            'chunk = 4, warps = 8 }, { up_to = 300, form = "blocks", n = 4, k = 4, chunk = 8, warps = 8, stages = 2 }',
            "",
        ),
    ],
    ids=[
        "right",
        "one row's form",
        "a size too few",
        "few rows' form",
        "two tiles",
        "two that differ in nothing that counts",
    ],
)
def test_exact_tables_with_more_than_one_order_are_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = TABLE + EXACT
    assert old in text
    (tmp_path / "h200.toml").write_text(text.replace(old, new))
    if message:
        with pytest.raises(ValueError, match=message):
            load_tiles("NVIDIA H200", tmp_path, exact=True)
    else:
        assert load_tiles("NVIDIA H200", tmp_path, exact=True).tile("in_proj", 1).exact


def test_blocks_of_float32_are_those_of_bfloat16_with_fewer_stages() -> None:
    table, wide = load_tiles("NVIDIA H200"), load_tiles("NVIDIA H200", dtype="float32")
    assert table.tile("sorted_up", 2048)["n"] == 2 * wide.tile("sorted_up", 2048)["n"]
    assert table.tile("in_proj", 8).sizes == wide.tile("in_proj", 8).sizes
    assert (table.tile("in_proj", 8).num_stages, wide.tile("in_proj", 8).num_stages) == (6, 3)
