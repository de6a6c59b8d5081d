import json
import sys
import types
from pathlib import Path

import huggingface_hub
import pytest

from splitrank.serving.gsm8k.config import Gsm8kConfig
from splitrank.serving.gsm8k.data import load_data, read_jsonl
from splitrank.serving.gsm8k.prompt import build_prompt, greedy_params


def write(path: Path, *rows: tuple[str, str]) -> Path:
    lines = [json.dumps({"question": question, "answer": answer}) for question, answer in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "test.jsonl", ("1+1?", "<<1+1=2>>2\n#### 2"), ("2+2?", "#### 4"), ("2000?", "#### 2,000"))
    write(tmp_path / "train.jsonl", ("3+3?", "six\n#### 6"), ("4+4?", "eight\n#### 8"))
    return tmp_path


def test_shots_are_the_first_of_the_train_file_beside(folder: Path) -> None:
    questions, shots = load_data(Gsm8kConfig(data=str(folder / "test.jsonl"), shots=1, limit=2))
    assert [(question.question, question.reference) for question in questions] == [("1+1?", "2"), ("2+2?", "4")]
    assert [shot.question for shot in shots] == ["3+3?"]


def test_the_prompt_is_lm_evals(folder: Path) -> None:
    questions, shots = load_data(Gsm8kConfig(data=str(folder / "test.jsonl"), shots=2))
    assert build_prompt(questions[0].question, shots) == (
        "Question: 3+3?\nAnswer: six\n#### 6\n\nQuestion: 4+4?\nAnswer: eight\n#### 8\n\nQuestion: 1+1?\nAnswer:"
    )
    assert build_prompt("x", []) == "Question: x\nAnswer:"
    params = greedy_params(256)
    assert (params.temperature, params.max_tokens, params.stop[0]) == (0.0, 256, "Question:")


def test_reference_numbers_are_normalised(folder: Path) -> None:
    questions, _ = load_data(Gsm8kConfig(data=str(folder / "test.jsonl"), shots=0))
    assert questions[2].reference == "2000"


def test_shots_from_the_test_file_are_refused(folder: Path) -> None:
    test = folder / "test.jsonl"
    (folder / "link.jsonl").symlink_to(test)
    for train in (test, folder / "link.jsonl"):
        with pytest.raises(ValueError, match="is the test file"):
            load_data(Gsm8kConfig(data=str(test), train=str(train), shots=1))


def test_a_copied_test_question_among_the_shots_is_refused(folder: Path) -> None:
    write(folder / "train.jsonl", ("2+2?", "#### 4"))
    with pytest.raises(ValueError, match="also a test question"):
        load_data(Gsm8kConfig(data=str(folder / "test.jsonl"), shots=1, limit=1))


def test_missing_and_short_train_files(folder: Path) -> None:
    with pytest.raises(ValueError, match="holds 2 examples, but --shots asks for 5"):
        load_data(Gsm8kConfig(data=str(folder / "test.jsonl")))
    (folder / "train.jsonl").unlink()
    with pytest.raises(ValueError, match="--train"):
        load_data(Gsm8kConfig(data=str(folder / "test.jsonl")))
    assert len(load_data(Gsm8kConfig(data=str(folder / "test.jsonl"), shots=0))[0]) == 3


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not a JSON line"),
        ('"text"', "not an object"),
        ('{"question": "q"}', "'answer' is missing"),
        ('{"question": 3, "answer": "#### 1"}', "'question' is missing, empty or not a string"),
        ('{"question": " ", "answer": "#### 1"}', "'question' is missing, empty"),
        ('{"question": "q", "answer": "1"}', "does not end in"),
        ('{"question": "\\ud800", "answer": "#### 1"}', "surrogate"),
        (b"\xff", "not a JSON line"),
        ("[" * 10**5, "not a JSON line"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line: str | bytes, reason: str) -> None:
    path = tmp_path / "data.jsonl"
    raw = line if isinstance(line, bytes) else line.encode()
    path.write_bytes(b'{"question": "q", "answer": "#### 1"}\n\n' + raw + b"\n")
    with pytest.raises(ValueError, match=rf"data\.jsonl:3: .*{reason}"):
        read_jsonl(path)


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"question": "q", "answer": "#### 1"}\n', encoding="utf-8-sig")
    assert [question.question for question in read_jsonl(path)] == ["q"]


def test_missing_and_empty_data(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="No such file"):
        read_jsonl(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match="Is a directory"):
        read_jsonl(tmp_path)
    (tmp_path / "test.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="holds no questions"):
        load_data(Gsm8kConfig(data=str(tmp_path / "test.jsonl"), shots=0))


def test_a_checkpoint_s_own_questions_are_the_default(tmp_path: Path) -> None:
    questions, shots = load_data(Gsm8kConfig())
    assert (len(questions), len(shots)) == (1000, 5)
    for name in ("test", "train"):
        (tmp_path / f"{name}.jsonl").write_text(f'{{"question": "{name}?", "answer": "#### 1"}}\n')
    questions, shots = load_data(Gsm8kConfig(model=str(tmp_path), shots=1))
    assert (questions[0].question, shots[0].question) == ("test?", "train?")


def test_the_hub_is_asked_without_local_data(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = {
        "main/test-00000-of-00001.parquet": [{"question": "1+1?", "answer": "#### 2"}],
        "main/train-00000-of-00001.parquet": [{"question": "3+3?", "answer": "#### 6"}],
    }
    parquet = types.ModuleType("pyarrow.parquet")
    parquet.read_table = lambda path, columns: types.SimpleNamespace(to_pylist=lambda: tables[path])  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", parquet)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda repo, file, repo_type: file)
    questions, shots = load_data(Gsm8kConfig(model="org/model", shots=1))
    assert (questions[0].question, shots[0].question) == ("1+1?", "3+3?")


def test_offline_the_hub_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", types.ModuleType("pyarrow.parquet"))
    with pytest.raises(ValueError, match=r"cannot fetch openai/gsm8k from the hub \(.*--data") as raised:
        load_data(Gsm8kConfig(model="org/model", shots=1))
    assert "\n" not in str(raised.value)


def test_without_pyarrow_the_hub_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ValueError, match="install pyarrow"):
        load_data(Gsm8kConfig(model="org/model"))
