"""Every option of every command: of its type, within finite bounds, and refused in one line that names it otherwise."""

import dataclasses
import math
from pathlib import Path
from typing import Any, get_type_hints

import msgspec
import numpy
import pytest

from splitrank.serving.batch.config import GenerateConfig
from splitrank.serving.bench import BenchConfig
from splitrank.serving.gsm8k.config import Gsm8kConfig
from splitrank.serving.options.config import EngineConfig, Options, ServeConfig, child_environment
from splitrank.serving.options.options import INT_TUPLE, load_config
from splitrank.serving.plan_command import InspectConfig, PlanConfig

CONFIGS: dict[type[Options], dict[str, Any]] = {  # with what must be given
    ServeConfig: {},
    GenerateConfig: {"input": "in", "output": "out"},
    Gsm8kConfig: {},
    BenchConfig: {},
    PlanConfig: {},
    InspectConfig: {},
}
ODD: list[Any] = [
    None, True, False, -1, 0, 1, 1.5, 16.0, 10**20, 2**63, -(10**20), 10**5000, math.nan, math.inf, -math.inf, 1e300,
    "", "1", "auto", b"x", [], [1], [0], (10**20,), ["a"], {}, numpy.int64(64), numpy.float64(0.5), object(),
]  # fmt: skip


def numeric_options(config_class: type[Options]) -> list[str]:
    hints = get_type_hints(config_class)
    return [field.name for field in dataclasses.fields(config_class) if hints[field.name] in (int, float, INT_TUPLE)]


@pytest.mark.parametrize("config_class", CONFIGS, ids=lambda config_class: config_class.__name__)
def test_every_numeric_option_has_finite_bounds(config_class: type[Options]) -> None:
    for field in dataclasses.fields(config_class):
        if field.name in numeric_options(config_class):
            assert "bounds" in field.metadata, field.name
            low, high, _ = field.metadata["bounds"]
            assert math.isfinite(low), field.name
            assert high < 2**63, field.name


@pytest.mark.parametrize("config_class", CONFIGS, ids=lambda config_class: config_class.__name__)
def test_odd_values_are_refused_by_name_or_kept_as_they_should_be(config_class: type[Options]) -> None:
    hints = get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        for value in ODD:
            try:
                config = config_class(**{**CONFIGS[config_class], field.name: value})
            except ValueError as error:
                message = str(error)
            else:
                kept = getattr(config, field.name)
                assert msgspec.convert(kept, hints[field.name], strict=True) == kept
                msgspec.msgpack.encode(kept)
                continue
            assert field.name.removesuffix("s") in message, message  # layouts: "layout 'a' …"
            assert len(message) < 300, message
            assert "\n" not in message


TOO_MUCH = str(10**20 - 1)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        *(
            ([f"--{name}", TOO_MUCH], f"{name.replace('-', '_')} must be at most ")
            for name in ("seed", "prefix-cache-mib", "max-queued-requests", "chunked-prefill-size", "num-pages", "tp")
        ),
        (["--threads-per-rank", "100000"], "threads_per_rank must be at most 1024, not 100000"),
        (["--step-timeout-s", "inf"], "step_timeout_s must be at most "),
        (["--load-timeout-s", "nan"], "load_timeout_s must be above 0, not nan"),
        (["--heartbeat-timeout-s", "0"], "heartbeat_timeout_s must be above 0, not 0.0"),
        (["--drain-timeout-s", "nan"], "drain_timeout_s must be at least 0, not nan"),
        (["--drain-timeout-s", "-5"], "drain_timeout_s must be at least 0, not -5.0"),
        (["--body-timeout-s", "nan"], "body_timeout_s must be above 0, not nan"),
        (["--mem-fraction-static", "nan"], "mem_fraction_static must be at least 0, not nan"),
        (["--max-body-bytes", "-1"], "max_body_bytes must be at least "),
        (["--max-body-bytes", "1"], "max_body_bytes must be at least "),
        (["--max-model-len", "1"], "max_model_len 1 leaves no room for a prompt and an answer; give at least 2"),
        (["--max-prefill-tokens", "32"], "max_prefill_tokens 32 is less than a chunk: give at least chunked_prefill"),
        (["--port", "65536"], "port must be at most 65535, not 65536"),
        (["--pp", "2", "--pp-partition", f"1,{TOO_MUCH}"], "pp_partition must be at most "),
        (["--model", ""], "model is empty, as from an unset variable: give a value or leave it out"),
        (["--api-key", ""], "api_key is empty, as from an unset variable"),
        (["--host="], "host is empty, as from an unset variable"),
        (["--served-model-name", ""], "served_model_name is empty, as from an unset variable"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_flags_that_can_only_fail_later(capsys: pytest.CaptureFixture[str], argv: list[str], said: str) -> None:
    with pytest.raises(SystemExit) as exit_info:
        load_config(ServeConfig, argv, "prog")
    assert exit_info.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"prog: error: {said}")


def test_memory_without_end_is_refused() -> None:
    for memory in (math.inf, math.nan, -1.0):
        with pytest.raises(ValueError, match="memory_gib must be at"):
            PlanConfig(memory_gib=memory)


def test_python_may_give_paths_lists_and_numpys_numbers() -> None:
    config = EngineConfig(
        model=Path("some") / "folder",  # type: ignore[arg-type]
        pp=numpy.int64(2),  # type: ignore[arg-type]
        pp_partition=[1, numpy.int32(3)],  # type: ignore[arg-type]
        mem_fraction_static=1,
    )
    assert (config.model, config.pp, config.pp_partition) == ("some/folder", 2, (1, 3))
    assert repr(config.mem_fraction_static) == "1.0"
    assert {type(value) for value in (config.pp, *config.pp_partition)} == {int}
    with pytest.raises(ValueError, match=r"dtype must be one of auto, bfloat16, float32, not 'int8'"):
        EngineConfig(dtype="int8")


def test_the_users_environment_beats_ours_where_nothing_depends_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    assert child_environment()["GOMP_SPINCOUNT"] == "30000"
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth0")
    environment = child_environment()
    assert (environment["GOMP_SPINCOUNT"], environment["GLOO_SOCKET_IFNAME"]) == ("7", "lo")
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    assert "GOMP_SPINCOUNT" not in child_environment()
