"""The whole comparison, with a scripted model in place of the processes."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from splitrank.serving.gsm8k import command
from splitrank.serving.gsm8k.config import Gsm8kConfig
from splitrank.serving.launch.engine_client import EngineDeadError, EngineStartError
from splitrank.serving.options.config import EngineConfig
from splitrank.serving.text.text_engine import PreparedModel, TextEngine
from tests.support.offline_fakes import Script, ScriptedClient, prepared_model

NUM_QUESTIONS = 40
Digest = Callable[[str, int], bytes]  # of a prompt's answer and a token's number: of its logits


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [{"question": f"What is {n} plus 0?", "answer": f"It is {n}.\n#### {n}"} for n in range(100, 200)]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:NUM_QUESTIONS]))
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[NUM_QUESTIONS:]))
    return tmp_path / "test.jsonl"


class Layouts:
    """Stands for ``prepare_model`` and ``start_prepared``: a script a start."""

    def __init__(
        self, folder: Path, scripts: list[Script | EngineStartError], digests: list[Digest], **spec: object
    ) -> None:
        self.folder, self.scripts, self.spec, self.digests = folder, scripts, spec, digests
        self.prepared: list[PreparedModel] = []
        self.configs: list[EngineConfig] = []
        self.clients: list[ScriptedClient] = []

    def prepare(self, config: EngineConfig) -> PreparedModel:
        self.configs.append(config)
        return prepared_model(self.folder, tp_size=config.tp, pp_size=config.pp, **self.spec)

    async def start(self, prepared: PreparedModel) -> TextEngine:
        self.prepared.append(prepared)
        script = self.scripts.pop(0)
        if isinstance(script, EngineStartError):
            raise script
        self.clients.append(ScriptedClient(prepared.tokenizer, script))
        if self.digests:
            self.clients[-1].digest = self.digests[(len(self.clients) - 1) % len(self.digests)]
        return TextEngine(self.clients[-1], prepared.tokenizer, prepared.info)


def number(prompt: str) -> int:
    return int(prompt.rpartition("What is ")[2].partition(" ")[0])


def right(prompt: str) -> str:
    return f" It is {number(prompt)}.\n#### {number(prompt)}\n\nQuestion: and now?"


def wrong_if(test: Callable[[int], bool]) -> Script:
    return lambda prompt: " Hm.\n#### 7" if test(number(prompt)) else right(prompt)


def compare(
    monkeypatch: pytest.MonkeyPatch,
    data: Path,
    scripts: list[Script | EngineStartError],
    spec: dict[str, object] | None = None,
    digests: list[Digest] | None = None,
    **options: object,
) -> tuple[int, Layouts]:
    layouts = Layouts(data.parent / "model", scripts, digests or [], **{"exact": False, **(spec or {})})
    monkeypatch.setattr(command, "prepare_model", layouts.prepare)
    monkeypatch.setattr(command, "start_prepared", layouts.start)
    values = {"data": str(data), "report": str(data.parent / "report.json"), **options}
    return command.run(Gsm8kConfig(**values)), layouts  # type: ignore[arg-type]


def read_report(data: Path) -> dict:  # type: ignore[type-arg]
    return json.loads((data.parent / "report.json").read_text())  # type: ignore[no-any-return]


def test_equal_layouts_agree(monkeypatch: pytest.MonkeyPatch, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = wrong_if(lambda n: n % 10 == 0)
    code, layouts = compare(monkeypatch, data, [script, script])
    assert code == 0
    assert [(config.tp, config.pp) for config in layouts.configs] == [(1, 1), (1, 2)]
    assert all(client.num_closed == 1 and client.num_open == 0 for client in layouts.clients)
    report = read_report(data)
    first, pair = report["layouts"][0], report["pairs"][0]
    assert first["strict"]["value"] == 0.9
    assert first["strict"]["standard_error"] == pytest.approx(math.sqrt(0.09 / 39))
    assert (first["lost"], first["cut_off"], first["answers"]) == (0, 0, NUM_QUESTIONS)
    assert (pair["byte_identical"], pair["questions"], pair["strict"]["mcnemar_p"]) == (40, 40, 1.0)
    output = capsys.readouterr().out
    assert "90.00% ± 4.80" in output
    assert "40 of 40" in output
    assert "no disagreement" in output


def test_each_question_is_asked_once_and_answers_end_at_the_next_question(
    monkeypatch: pytest.MonkeyPatch, data: Path
) -> None:
    _, layouts = compare(monkeypatch, data, [right], layouts=("pp=1",), shots=2, concurrency=3)
    prompts = layouts.clients[0].prompts
    assert sorted(map(number, prompts)) == list(range(100, 140))
    assert all(prompt.count("Question:") == 3 and prompt.endswith("Answer:") for prompt in prompts)
    assert layouts.clients[0].most_open == 3
    report = read_report(data)
    assert report["pairs"] == []
    answer = report["questions"][5]["answers"]["pp=1"]
    assert answer["text"] == " It is 105.\n#### 105\n\n"
    assert answer["strict"] == {"number": "105", "right": True}


def test_layouts_that_differ_by_more_than_luck_are_an_error(
    monkeypatch: pytest.MonkeyPatch, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _ = compare(monkeypatch, data, [right, wrong_if(lambda n: n < 110)])
    assert code == 1
    pair = read_report(data)["pairs"][0]
    assert (pair["strict"]["only_first_right"], pair["strict"]["only_second_right"]) == (10, 0)
    assert pair["strict"]["mcnemar_p"] == 2 / 2**10
    assert pair["strict"]["difference"] == -0.25
    assert pair["byte_identical"] == 30
    assert "DISAGREE: pp=1 and pp=2 (strict)" in capsys.readouterr().out


def test_the_limit_is_divided_by_the_number_of_pairs(monkeypatch: pytest.MonkeyPatch, data: Path) -> None:
    worse = wrong_if(lambda n: n < 108)  # p = 2 / 2**8 = 0.0078: below 0.01, above 0.01 / 3
    assert compare(monkeypatch, data, [right, worse])[0] == 1
    assert compare(monkeypatch, data, [right, right, worse], layouts=("pp=1", "pp=2", "pp=3"))[0] == 0


def test_exact_layouts_that_differ_in_a_byte_are_an_error(
    monkeypatch: pytest.MonkeyPatch, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At any concurrency, also over tp, and though no difference is significant."""
    layouts = ("pp=1", "tp=2")
    worse = wrong_if(lambda n: n == 108)
    assert compare(monkeypatch, data, [right, right], {"exact": True}, layouts=layouts)[0] == 0
    assert "no bit differs" not in capsys.readouterr().out  # without digests nothing is known of the logits
    assert compare(monkeypatch, data, [right, worse], {"exact": True}, layouts=layouts)[0] == 1
    said = capsys.readouterr().out
    assert "ALTERED: pp=1 and tp=2 pp=1 answer 1 of 40 questions in other bytes; both layouts are exact" in said
    assert compare(monkeypatch, data, [right, worse], {"exact": False}, layouts=layouts)[0] == 0


def test_numbers_that_only_the_flexible_extraction_finds_are_compared_too(
    monkeypatch: pytest.MonkeyPatch, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def chatty(prompt: str) -> str:
        return f" The answer is {number(prompt)}."

    def chatty_and_worse(prompt: str) -> str:
        return " The answer is 7." if number(prompt) < 120 else chatty(prompt)

    assert compare(monkeypatch, data, [chatty, chatty_and_worse])[0] == 1
    captured = capsys.readouterr()
    assert "DISAGREE: pp=1 and pp=2 (flexible)" in captured.out
    assert "UNINFORMATIVE: strict numbers of pp=1 cannot support a comparison: 40 of 40" in captured.err
    assert "UNINFORMATIVE: flexible" not in captured.err


def test_a_model_that_knows_nothing_is_no_agreement(
    monkeypatch: pytest.MonkeyPatch, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _ = compare(monkeypatch, data, [lambda _: "#### 7", lambda _: "#### 7"])
    assert code == 0
    captured = capsys.readouterr()
    for text in (captured.out, captured.err):
        assert "UNINFORMATIVE: strict numbers of pp=1 cannot support a comparison: only 0 of 40" in text
        assert "UNINFORMATIVE: flexible numbers of pp=2" in text
    assert "no disagreement" not in captured.out


def test_cut_off_and_token_counts(monkeypatch: pytest.MonkeyPatch, data: Path) -> None:
    compare(monkeypatch, data, [lambda prompt: "word " * number(prompt)], layouts=("pp=1",), max_tokens=5)
    layout = read_report(data)["layouts"][0]
    assert (layout["cut_off"], layout["tokens"], layout["mean_answer_tokens"]) == (40, 200, 5.0)
    assert layout["strict"]["unparsable"] == 40


def test_a_lost_request_fails_the_run_and_is_not_compared(
    monkeypatch: pytest.MonkeyPatch, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def losing(prompt: str) -> str | Exception:
        return EngineDeadError("rank 1 was killed") if number(prompt) == 103 else right(prompt)

    code, layouts = compare(monkeypatch, data, [right, losing])
    assert code == 1
    assert layouts.clients[1].num_closed == 1
    report = read_report(data)
    assert report["layouts"][1]["lost"] == 1
    assert report["layouts"][1]["strict"]["num_answers"] == 39
    assert (report["pairs"][0]["questions"], report["pairs"][0]["byte_identical"]) == (39, 39)
    assert report["questions"][3]["answers"]["pp=2"]["error"] == "rank 1 was killed"
    assert "LOST: 1 requests of pp=2; the first: rank 1 was killed" in capsys.readouterr().out


def test_a_layout_that_does_not_start_loses_all_its_questions_only(
    monkeypatch: pytest.MonkeyPatch, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _ = compare(monkeypatch, data, [right, EngineStartError("rank 0: load: no memory")])
    assert code == 1
    report = read_report(data)
    assert [layout["lost"] for layout in report["layouts"]] == [0, 40]
    assert "pp=2 did not start: rank 0: load: no memory" in capsys.readouterr().err


def test_prompts_too_long_are_refused_before_any_start(monkeypatch: pytest.MonkeyPatch, data: Path) -> None:
    with pytest.raises(ValueError, match=r"question \d+ has \d+ prompt tokens with 5 shots.*300 tokens.*--shots"):
        compare(monkeypatch, data, [], spec={"max_model_len": 300})


@pytest.mark.parametrize("name", ["", "missing/report.json"])
def test_a_report_that_cannot_be_written_is_refused_first(
    monkeypatch: pytest.MonkeyPatch, data: Path, name: str
) -> None:
    with pytest.raises(ValueError, match="--report"):
        compare(monkeypatch, data, [], report=str(data.parent / name))


@pytest.mark.parametrize(("read", "written"), [("test.jsonl", ""), ("train.jsonl", ""), ("test.jsonl", ".part")])
def test_a_report_does_not_take_the_place_of_the_questions(
    monkeypatch: pytest.MonkeyPatch, data: Path, read: str, written: str
) -> None:
    report = data.parent / "report"
    Path(f"{report}{written}").symlink_to(data.parent / read)
    content = data.read_bytes()
    with pytest.raises(ValueError, match=r"--report .*report.* is the file of questions"):
        compare(monkeypatch, data, [], report=str(report))
    assert data.read_bytes() == content


def test_exact_layouts_are_asked_for_digests_and_must_have_the_same_ones(
    monkeypatch: pytest.MonkeyPatch, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Though every byte of the answers is the same."""
    digests = [
        lambda prompt, token: b"same",
        lambda prompt, token: b"x" if number(prompt) == 107 and token > 2 else b"same",
    ]
    code, layouts = compare(
        monkeypatch, data, [right, right, right, right], {"exact": True}, [digests[0], digests[1]], trace=False
    )
    assert code == 1
    assert [prepared.spec.digests for prepared in layouts.prepared] == [True, True]
    assert all(params.logprobs is None for client in layouts.clients for params in client.params)  # digests come alone
    said = capsys.readouterr().out
    assert "pp=1 and pp=2 answer 0 of 40 questions in other bytes; both layouts are exact; " in said
    assert "rows of logits differ, the first at token 3 of the answer to question 7\n" in said
    assert "no bit differs" not in said
    pair, question = read_report(data)["pairs"][0], read_report(data)["questions"][7]["answers"]
    assert pair["byte_identical"] == 40
    assert pair["equal_logit_rows"] < pair["logit_rows"]
    assert question["pp=1"]["logits"] != question["pp=2"]["logits"]


def test_the_proof_is_said(monkeypatch: pytest.MonkeyPatch, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    same = [lambda prompt, token: prompt.encode() + bytes([token])] * 2
    code, layouts = compare(monkeypatch, data, [right, right], {"exact": True}, same, concurrency=3)
    assert code == 0
    assert len(layouts.clients) == 2  # nothing is traced
    num_rows = read_report(data)["pairs"][0]["logit_rows"]
    said = capsys.readouterr().out
    assert f"no bit differs: 40 answers and {num_rows} rows of logits in 2 exact layouts, 3 questions at once" in said
    assert num_rows == read_report(data)["layouts"][0]["tokens"]


def test_a_difference_that_cannot_be_traced_is_said(
    monkeypatch: pytest.MonkeyPatch, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digests = [lambda prompt, token: b"same", lambda prompt, token: b"other"]
    code, layouts = compare(monkeypatch, data, [right] * 4, {"exact": True}, digests)
    assert code == 1
    assert "TRACE: pp=1 and pp=2: question 0 could not be asked again" in capsys.readouterr().out
    alone = layouts.clients[2]
    assert (len(alone.prompts), alone.params[0].max_tokens) == (1, 1)
    assert read_report(data)["verdict"][-1].startswith("TRACE: ")


def test_layouts_that_are_not_exact_are_not_asked_for_digests(monkeypatch: pytest.MonkeyPatch, data: Path) -> None:
    _, layouts = compare(monkeypatch, data, [right, right])
    assert not any(prepared.spec.digests for prepared in layouts.prepared)
    assert read_report(data)["questions"][0]["answers"]["pp=1"]["logits"] is None
