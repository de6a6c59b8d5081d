"""Flags and TOML keys come from the dataclass alone, and every mistake is one line with exit code 2."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import pytest

from splitrank.serving.batch.config import GenerateConfig
from splitrank.serving.gsm8k.config import Gsm8kConfig
from splitrank.serving.options.checked import Bounds
from splitrank.serving.options.config import Options, ServeConfig, ServedModelConfig, option
from splitrank.serving.options.groups import COMMANDS_OWN, GROUPS
from splitrank.serving.options.options import load_config


@dataclass(frozen=True, kw_only=True)
class SmallConfig(Options):
    name: str = option("x", "a name")
    count: int = option(3, "a count, 100% of it", bounds=Bounds(0, 9))
    share: float = option(0.5, "a share", bounds=Bounds(0, 1), aliases=("given-part",))
    loud: bool = option(False, "say more")
    kind: str = option("a", "one of two", choices=("a", "b"))
    sizes: tuple[int, ...] = option((), "some sizes", bounds=Bounds(0, 9))
    words: tuple[str, ...] = option(("u", "v"), "some words")


def load(*argv: str) -> SmallConfig:
    return load_config(SmallConfig, argv, "prog")


def refusal(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit) as exit_info:
        load(*argv)
    assert exit_info.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("prog: error: ")
    return lines[0]


@pytest.fixture
def toml(tmp_path: Path):
    def write(text: str, encoding: str = "utf-8") -> str:
        file = tmp_path / "some.toml"
        file.write_text(text, encoding)
        return str(file)

    return write


def test_nothing_given_is_the_defaults() -> None:
    assert load() == SmallConfig()


def test_every_type_as_a_flag() -> None:
    given = load(
        "--name", "y", "--count=7", "--share", "1", "--loud", "--kind", "b", "--sizes", "2,3", "--words", "a", "b c"
    )
    assert given == SmallConfig(name="y", count=7, share=1.0, loud=True, kind="b", sizes=(2, 3), words=("a", "b c"))
    assert isinstance(given.share, float)


def test_every_type_in_toml_and_flags_beat_it(toml) -> None:
    file = toml('name="y"\ncount=7\nshare=1\nloud=true\nkind="b"\nsizes=[2, 3]\nwords=["a"]')
    assert load("--config", file, "--no-loud", "--count", "8") == SmallConfig(
        name="y", count=8, share=1.0, loud=False, kind="b", sizes=(2, 3), words=("a",)
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cuont = 7", "unknown key 'cuont'; did you mean count?"),
        ("[serve]\ncount = 7", "[serve] is a table; options stand without one"),
        ("count = true", "count must be of type int, not True"),
        ('count = "7"', "count must be of type int, not '7'"),
        ("count = 7.0", "count must be of type int, not 7.0"),
        ("loud = 1", "loud must be of type bool, not 1"),
        ("share = false", "share must be of type float, not False"),
        ("sizes = [1, true]", "sizes must be a list of int, not [1, True]"),
        ("words = 5", "words must be a list of str, not 5"),
        ("count = ", "not valid TOML"),
        ("share = 1\ngiven_part = 0.5", "given_part is share, which is given as well"),
        ("given_prat = 2", "unknown key 'given_prat'; did you mean given_part?"),
        ('name = ""', "name is empty, as from an unset variable"),
    ],
)
def test_a_wrong_toml_file_is_named_with_the_key(capsys, toml, text: str, expected: str) -> None:
    message = refusal(capsys, "--config", toml(text))
    assert "some.toml: " in message
    assert expected in message


def test_toml_knows_the_aliases_and_a_byte_order_mark(toml) -> None:
    assert load("--config", toml("given_part = 1")) == SmallConfig(share=1.0)
    assert load("--config", toml("given_part = 1"), "--share", "0") == SmallConfig(share=0.0)
    assert load("--config", toml('name = "ä"', "utf-8-sig")) == SmallConfig(name="ä")
    file = toml("tensor_parallel_size = 2\npp_size = 3\nmodel_path = 'm'")
    config = load_config(ServeConfig, ["--config", file], "prog")
    assert (config.tp, config.pp, config.model) == (2, 3, "m")


def test_a_missing_toml_file_is_named(capsys) -> None:
    expected = "prog: error: config absent.toml cannot be read: No such file or directory"
    assert refusal(capsys, "--config", "absent.toml") == expected
    assert "config is empty, as from an unset variable" in refusal(capsys, "--config", "")


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--cuont", "7"], "unknown argument --cuont; did you mean --count?"),
        (["--coun", "7"], "unknown argument --coun"),  # no abbreviations: they change meaning when options are added
        (["stray"], "unknown argument stray"),
        (["--count", "x"], "invalid int value: 'x'"),
        (["--kind", "c"], "invalid choice: 'c'"),
        (["--sizes", "2,x"], "'2,x' is not a list of integers like 20,20"),
        (["--count", "-1"], "count must be at least 0, not -1"),
    ],
)
def test_a_wrong_flag_is_refused(capsys, argv: list[str], expected: str) -> None:
    assert expected in refusal(capsys, *argv)


def test_help_shows_defaults(capsys) -> None:
    with pytest.raises(SystemExit) as exit_info:
        load("--help")
    assert exit_info.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "--count N a count, 100% of it (default: 3)" in text
    assert "--loud, --no-loud" in text
    assert "some words (default: u v)" in text


def test_help_has_headings_and_every_shared_option_has_one(capsys) -> None:
    shared = {field.name for field in dataclasses.fields(ServedModelConfig)}
    assert {name for names in GROUPS.values() for name in names} == shared
    with pytest.raises(SystemExit):
        load_config(GenerateConfig, ["--help"], "splitrank generate")
    text = capsys.readouterr().out
    assert text.startswith("usage: splitrank generate --input FILE --output FILE [options]\n")
    places = [text.index(part) for part in (COMMANDS_OWN, "--overwrite", *(f"\n{title}:" for title in GROUPS))]
    assert places == sorted(places)


def test_an_option_that_its_command_refuses_is_not_shown(capsys) -> None:
    with pytest.raises(SystemExit):
        load_config(Gsm8kConfig, ["--help"], "splitrank gsm8k")
    assert not {"--tp", "--pp", "--pp-partition"} & set(capsys.readouterr().out.replace(",", " ").split())
    with pytest.raises(SystemExit):
        load_config(Gsm8kConfig, ["--tp", "2"], "splitrank gsm8k")
    assert "give --layouts instead" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--all-reduce", "nccl"], "argument --all-reduce: invalid choice: 'nccl' (choose from auto, quick, torch)"),
        (["--all-reduce-codec", "int5"], "argument --all-reduce-codec: invalid choice: 'int5'"),
        (["--all-reduce", "torch", "--all-reduce-codec", "int8"], "all_reduce_codec int8: torch has no codecs"),
    ],
)
def test_an_all_reduce_that_cannot_be_is_refused(capsys, toml, argv: list[str], expected: str) -> None:
    with pytest.raises(SystemExit) as exit_info:
        load_config(ServeConfig, argv, "prog")
    assert exit_info.value.code == 2
    assert expected in capsys.readouterr().err.replace("'auto', 'quick', 'torch'", "auto, quick, torch")
    file = toml('all_reduce = "quick"\nall_reduce_codec = "int6"')
    config = load_config(ServeConfig, ["--config", file], "prog")
    assert (config.all_reduce, config.all_reduce_codec) == ("quick", "int6")


@pytest.mark.parametrize("flags", [("--tp", "--pp"), ("--tp-size", "--pp-size")])
def test_the_names_that_users_of_other_engines_type(flags: tuple[str, str]) -> None:
    config = load_config(ServeConfig, [flags[0], "2", flags[1], "3", "--model-path", "m"], "prog")
    assert (config.tp, config.pp, config.model) == (2, 3, "m")
    assert load_config(ServeConfig, ["--tensor-parallel-size", "2"], "prog").tp == 2
    sizes = ["--max-num-seqs", "4", "--gpu-memory-utilization", "0.5", "--context-length", "64", "--block-size", "32"]
    config = load_config(ServeConfig, sizes, "prog")
    named = (config.max_running_requests, config.mem_fraction_static, config.max_model_len, config.page_size)
    assert named == (4, 0.5, 64, 32)


def test_a_model_without_its_flag_is_told_the_flag(capsys) -> None:
    with pytest.raises(SystemExit):
        load_config(ServeConfig, ["org/model", "--tp", "2"], "prog")
    assert "unknown argument org/model; the model is --model org/model" in capsys.readouterr().err
