"""What is learnt is what splitrank sends: few-shot prompts, chat template; and never GSM8K's test split."""

import itertools
import json
import random
from pathlib import Path

import chatter
import gsm8k_train
import mix
import pytest
from batches import encode
from documents import Example, Exchange, chat, solved_examples, text_of
from evaluation import chat_prompt, question_prompt
from generator import problems
from gsm8k_train import Solved, clean, read_train
from gsm8k_vary import vary
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from splitrank.serving.gsm8k.data import Question
from splitrank.serving.gsm8k.prompt import build_prompt
from splitrank.serving.launch.demo_checkpoint import demo_checkpoint_path

SOLVED = [Solved(f"What is {n} + 1?", f"{n} + 1 = {n + 1}\n#### {n + 1}", f"<<{n}+1={n + 1}>>") for n in range(20)]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(demo_checkpoint_path())


def test_solved_examples_are_the_prompts_of_splitrank_gsm8k() -> None:
    shots = [Question("How many?", "5 + 5 = 10\n#### 10", "10"), Question("And now?", "3 * 3 = 9\n#### 9", "9")]
    document = solved_examples([Example(shot.question, shot.answer) for shot in [*shots, Question("Q", "A", "1")]])
    assert text_of(document) == build_prompt("Q", shots) + " A<|endoftext|>"
    assert question_prompt("Q", [(shot.question, shot.answer) for shot in shots]) == build_prompt("Q", shots)


@pytest.mark.parametrize("thinking", [True, False])
@pytest.mark.parametrize("system", ["", "Be brief."])
def test_chats_are_those_of_the_template(tokenizer, thinking: bool, system: str) -> None:
    exchanges = [Exchange("Hello", "greeting", "Hi."), Exchange("2 + 2?", "2 + 2 = 4", "It is 4.\n#### 4")]
    messages = [{"role": "system", "content": system}] if system else []
    messages += [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi."}]
    messages += [{"role": "user", "content": "2 + 2?"}]
    prompt = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, enable_thinking=thinking
    )
    document = chat(exchanges, system, thinking)
    assert text_of(document[:-1]) == prompt
    thought = "2 + 2 = 4\n</think>\n\n" if thinking else ""
    assert document[-1] == (f"{thought}It is 4.\n#### 4<|im_end|>", 1.0)
    if not system:
        asked = [{"role": "user", "content": "2 + 2?"}]
        alone = tokenizer.apply_chat_template(
            asked, tokenize=False, add_generation_prompt=True, enable_thinking=thinking
        )
        assert chat_prompt("2 + 2?", thinking) == alone


def test_the_mix_is_the_same_for_the_same_seed_and_holds_every_sort() -> None:
    made = list(itertools.islice(mix.documents("1", SOLVED), 200))
    assert made == list(itertools.islice(mix.documents("1", SOLVED), 200))
    assert made != list(itertools.islice(mix.documents("2", SOLVED), 200))
    texts = list(map(text_of, made))
    for part in ("<think>\n\n</think>\n\n", "\n</think>\n\n", "<|im_start|>system", "Answer:", " + 1?\nAnswer:"):
        assert any(part in text for text in texts), part
    assert max(text.count("Question:") for text in texts) >= 10
    assert all(text.endswith(("<|endoftext|>", "<|im_end|>")) for text in texts)


def test_without_gsm8k_only_generated_text_is_learnt() -> None:
    texts = map(text_of, itertools.islice(mix.documents("1", []), 100))
    assert not any(" + 1?\nAnswer:" in text for text in texts)


def test_every_maker_is_in_the_mix_and_weighs_its_answers() -> None:
    assert sum(mix.SHARES.values()) == pytest.approx(1.0)
    for maker in mix.SHARES:
        document = maker(random.Random(2), problems("train", "1"), SOLVED)
        assert document[-1][1] == 1.0
        assert {weight for _, weight in document} <= {0.0, 0.1, 1.0}


def test_small_talk_counts_right() -> None:
    rng = random.Random(4)
    turns = [chatter.turn(rng) for _ in range(200)]
    assert all(turn.user and turn.thought and turn.answer for turn in turns)
    counted = next(turn for turn in turns if turn.user.startswith("Count from") and "words" not in turn.user)
    first, last = [int(word.strip(".")) for word in counted.user.split() if word.strip(".").isdigit()]
    assert counted.answer == ", ".join(map(str, range(first, last + 1)))


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("She sold 48/2 = <<48/2=24>>24 clips.\n#### 24", "She sold 48 / 2 = 24 clips.\n#### 24"),
        ("It is 0.2 x 50 = $<<0.2*50=10>>10.", "It is 0.2 * 50 = $10."),
        ("5*4=<<5*4=20>>20", "5 * 4 = 20"),
        ("100-50 = 50", "100 - 50 = 50"),
    ],
)
def test_gsm8k_answers_look_like_generated_ones(raw: str, cleaned: str) -> None:
    assert clean(raw) == cleaned


def write_rows(path: Path, questions: list[str]) -> Path:
    path.write_text("".join(json.dumps({"question": one, "answer": "1 + 1 = 2\n#### 2"}) + "\n" for one in questions))
    return path


def test_the_test_split_is_refused_by_name_content_and_question(tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(ValueError, match="test split"):
        read_train(write_rows(tmp_path / "gsm8k_test.jsonl", ["a"]))
    renamed = write_rows(tmp_path / "train.jsonl", ["a", "b"])
    monkeypatch.setattr(gsm8k_train, "TEST_SHA256", gsm8k_train.hashlib.sha256(renamed.read_bytes()).hexdigest())
    with pytest.raises(ValueError, match="test split"):
        read_train(renamed)
    monkeypatch.undo()
    write_rows(tmp_path / "test.jsonl", ["b"])
    with pytest.raises(ValueError, match="holds 1 questions of"):
        read_train(renamed)


def test_the_last_of_the_train_split_are_held_back(tmp_path: Path) -> None:
    training, development = read_train(write_rows(tmp_path / "train.jsonl", [str(n) for n in range(250)]))
    assert (len(training), len(development)) == (50, 200)
    assert development[0].question == "50"
    assert training[0].thought == "1 + 1 = 2"


def test_gsm8k_problems_get_other_numbers_that_are_right_again() -> None:
    one = Solved(
        "Ann has 48 clips and sells half as many in 5 days. How many is that?",
        "",
        "She sold 48/2 = <<48/2=24>>24 clips.\nIn all 48+24 = <<48+24=72>>72 clips.\n#### 72",
    )
    made = [variant for seed in range(20) if (variant := vary(one, random.Random(seed)))]
    assert len({variant.question for variant in made}) > 5
    for variant in made:
        clips = int(variant.question.split()[2])
        assert " in 5 days" in variant.question  # of no equation
        assert variant.answer == (
            f"She sold {clips} / 2 = {clips // 2} clips.\n"
            f"In all {clips} + {clips // 2} = {clips + clips // 2} clips.\n#### {clips + clips // 2}"
        )


@pytest.mark.parametrize(
    ("question", "marked"),
    [
        ("She has 3 boxes, thrice as many bags.", "3*3=<<3*3=9>>9\n#### 9"),  # the second 3 is another one
        ("He has 24 and 48 clips.", "48/2=<<48/2=24>>24\n#### 24"),  # the result is told as well
        ("She has 2.5 pounds.", "2.5*4=<<2.5*4=10>>10\n#### 10"),
        ("A week has 7 days.", "7*3=<<7*3=21>>21\n#### 21"),
        ("He has 48.", "(48+2)/2=<<(48+2)/2=25>>25\n#### 25"),
        ("He has 48.", "#### 48"),
    ],
)
def test_numbers_that_cannot_be_told_apart_stay(question: str, marked: str) -> None:
    assert vary(Solved(question, clean(marked), marked), random.Random(1)) is None


def test_a_document_begins_with_the_tokens_of_its_prompt() -> None:
    """What is learnt after the served prompt's tokens is the answer, all of it and from its first token on."""
    tokenizer = Tokenizer.from_file(str(demo_checkpoint_path() / "tokenizer.json"))
    exchange = Exchange("2 + 3?", "2 and 3 are 5.", "It is 5.\n#### 5")
    shot, asked = Example("1 + 1?", "2.\n#### 2", 0.0), Example("2 + 3?", "It is 5.\n#### 5")
    cases = [
        (solved_examples([asked]), question_prompt("2 + 3?", [])),
        (solved_examples([shot, asked]), question_prompt("2 + 3?", [("1 + 1?", "2.\n#### 2")])),
        (chat([exchange], "", thinking=True), chat_prompt("2 + 3?", thinking=True)),
        (chat([exchange], "", thinking=False), chat_prompt("2 + 3?", thinking=False)),
    ]
    for document, prompt in cases:
        ids, weights = encode(tokenizer, document)
        prompt_ids = tokenizer.encode(prompt, add_special_tokens=False).ids
        assert ids[: len(prompt_ids)] == prompt_ids
        assert max(weights[: len(prompt_ids)]) < 1.0, prompt
        assert set(weights[len(prompt_ids) :]) == {1.0}, prompt
