import io

import pytest

from splitrank.serving.options.progress import PlainProgress, progress


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_plain_lines_come_every_ten_seconds_and_at_the_end() -> None:
    clock, stream = Clock(), io.StringIO()
    with PlainProgress(40, "work", "items", start=10, stream=stream, clock=clock) as bar:
        for _ in range(20):
            clock.now += 1.0
            bar.update()
    lines = stream.getvalue().splitlines()
    assert lines == [
        "work: 20 of 40 items after 10 s, 1.00 items/s",
        "work: 30 of 40 items after 20 s, 1.00 items/s",
        "work: 30 of 40 items after 20 s, 1.00 items/s",
    ]


def test_large_amounts_are_scaled() -> None:
    clock, stream = Clock(), io.StringIO()
    with PlainProgress(10_968_960, "loading", "B", stream=stream, clock=clock) as bar:
        bar.update(5_500_000)
        clock.now += 2.0
    assert stream.getvalue() == "loading: 5.50M of 11.0M B after 2 s, 2.75M B/s\n"


def test_the_last_line_stands_also_after_an_error() -> None:
    stream = io.StringIO()

    def failing_work() -> None:
        with PlainProgress(4, "work", "items", stream=stream, clock=Clock()) as bar:
            bar.update()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        failing_work()
    assert stream.getvalue() == "work: 1 of 4 items after 0 s\n"


def test_no_bar_without_a_terminal_and_nothing_when_hidden(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(2, "work", "items") as bar:
        bar.update(2)
    assert capsys.readouterr().err.startswith("work: 2 of 2 items after ")
    with progress(2, "work", "items", show=False) as bar:
        bar.update(2)
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with progress(3, "work", "items", start=1) as bar:
        bar.update(2)
    assert "3/3" in terminal.getvalue()
    assert "100%" in terminal.getvalue()
