import pytest

from splitrank.serving.gsm8k.config import Gsm8kConfig, Layout, engine_configs, parse_layout


@pytest.mark.parametrize(
    ("text", "tp", "pp", "name"),
    [
        ("pp=1", 1, 1, "pp=1"),
        ("pp=2", 1, 2, "pp=2"),
        ("tp=2", 2, 1, "tp=2 pp=1"),
        ("tp=2 pp=3", 2, 3, "tp=2 pp=3"),
        ("pp=3,tp=2", 2, 3, "tp=2 pp=3"),
        (" tp=2, pp=2 ", 2, 2, "tp=2 pp=2"),
    ],
)
def test_layouts(text: str, tp: int, pp: int, name: str) -> None:
    layout = parse_layout(text)
    assert layout == Layout(tp=tp, pp=pp)
    assert str(layout) == name


@pytest.mark.parametrize("text", ["", "2", "pp", "pp=", "pp=0", "pp=-1", "pp=x", "ep=2", "pp=1 pp=2", "pp=1.0", "pp=²"])
def test_layouts_refused(text: str) -> None:
    with pytest.raises(ValueError, match="layout"):
        parse_layout(text)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"tp": 2}, "--layouts"),
        ({"pp": 2}, "--layouts"),
        ({"pp_partition": (1,)}, "--layouts"),
        ({"layouts": ()}, "at least one"),
        ({"layouts": ("pp=2", "tp=1,pp=2")}, "twice"),
        ({"shots": -1}, "shots"),
        ({"limit": -1}, "limit"),
        ({"concurrency": 0}, "concurrency"),
        ({"concurrency": 5000}, "4128"),
        ({"max_tokens": 0}, "max_tokens"),
    ],
)
def test_config_refuses(values: dict[str, object], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Gsm8kConfig(**values)  # type: ignore[arg-type]


def test_one_thread_count_for_all_layouts() -> None:
    config = Gsm8kConfig(layouts=("pp=1", "tp=2 pp=2"), seed=7, dtype="float32")
    engines = engine_configs(config, num_cores=10)
    assert [(engine.tp, engine.pp, engine.threads_per_rank) for engine in engines] == [(1, 1, 2), (2, 2, 2)]
    assert {(engine.seed, engine.dtype) for engine in engines} == {(7, "float32")}
    assert {engine.threads_per_rank for engine in engine_configs(config, num_cores=2)} == {1}
    given = Gsm8kConfig(layouts=("pp=1", "pp=2"), threads_per_rank=3)
    assert {engine.threads_per_rank for engine in engine_configs(given, num_cores=64)} == {3}
