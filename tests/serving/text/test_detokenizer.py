"""Incremental text equals the decode of all ids; stop strings do not depend on how the text arrives."""

import random

import pytest
import tokenizers
from tokenizers.decoders import DecodeStream

from splitrank.serving.protocol.sampling_params import SamplingParams
from splitrank.serving.text import detokenizer as module
from splitrank.serving.text.detokenizer import PLAIN_TEXT, Detokenizer, IncrementalDecoder, StopStringFinder, TextForm
from splitrank.serving.text.tokenizer import Tokenizer
from tests.support.tiny_tokenizer import write_tokenizer

TEXT = "Grüße, 世界! 👩‍👩‍👧 naïve <think> aé\u0301 \ufffd z\n\n  end"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_folder(write_tokenizer(tmp_path_factory.mktemp("tokenizer"), 600))


def decode_steps(tokenizer: Tokenizer, token_ids: list[int]) -> list[str]:
    decoder = IncrementalDecoder(tokenizer.backend)
    return [*(decoder.push(token_id) for token_id in token_ids), decoder.finish()]


def test_whole_characters_only(tokenizer: Tokenizer) -> None:
    text = TEXT.replace("\ufffd", "")
    steps = decode_steps(tokenizer, tokenizer.encode(text))
    assert "".join(steps) == text
    assert not any("\ufffd" in step for step in steps)
    assert steps[-1] == ""


def test_a_real_replacement_character_is_kept(tokenizer: Tokenizer) -> None:
    assert "".join(decode_steps(tokenizer, tokenizer.encode(TEXT))) == TEXT
    assert "".join(decode_steps(tokenizer, tokenizer.encode("x\ufffd"))) == "x\ufffd"


def test_a_cut_last_character_is_ended(tokenizer: Tokenizer) -> None:
    token_ids = tokenizer.encode("a🦊")[:-1]
    assert "".join(decode_steps(tokenizer, token_ids)) == "a\ufffd" == tokenizer.decode(token_ids)


def test_random_ids_equal_the_decode_of_all(tokenizer: Tokenizer) -> None:
    """Mostly bytes: broken, truncated and overlong sequences, special tokens, ids without an entry."""
    for seed in range(300):
        generator = random.Random(seed)
        above = 700 if seed % 3 == 0 else 256
        token_ids = [generator.randrange(above) for _ in range(generator.randrange(1, 60))]
        assert "".join(decode_steps(tokenizer, token_ids)) == tokenizer.decode(token_ids)


def test_runs_of_broken_bytes_equal_the_decode_of_all(tokenizer: Tokenizer) -> None:
    for seed in range(300):
        generator = random.Random(seed)
        broken = [0x80, 0xBF, 0xC3, 0xE2, 0x82, 0xF0, 0x9F, 0xED, 0xA0, 0xFF]
        token_of_byte = {tokenizer.token_bytes(token_id)[0]: token_id for token_id in range(256)}
        token_ids = [token_of_byte[generator.choice(broken)] for _ in range(generator.randrange(1, 80))]
        assert "".join(decode_steps(tokenizer, token_ids)) == tokenizer.decode(token_ids)


def test_undecodable_ids_do_not_pile_up(tokenizer: Tokenizer) -> None:
    decoder = IncrementalDecoder(tokenizer.backend)
    byte = next(token_id for token_id in range(256) if tokenizer.token_bytes(token_id) == b"\x80")
    for token_id in [byte] * 100 + [tokenizer.encode("<|im_end|>")[0]] * 100 + [599] * 100:
        decoder.push(token_id)
        assert len(decoder._pending) <= module.MAX_PENDING


def test_the_stream_survives_its_own_errors(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        """Raises once, at the third id, as DecodeStream does on a prefix it did not expect."""

        num_steps = 0

        def __init__(self, skip_special_tokens: bool) -> None:
            self._stream = DecodeStream(skip_special_tokens=skip_special_tokens)

        def step(self, backend: tokenizers.Tokenizer, token_id: int) -> str | None:
            Broken.num_steps += 1
            if Broken.num_steps == 3:
                raise Exception("Invalid prefix encountered")
            return self._stream.step(backend, token_id)

    monkeypatch.setattr(module, "DecodeStream", Broken)
    assert "".join(decode_steps(tokenizer, tokenizer.encode("abcdef"))) == "abcdef"


# ------------------------------------------------------------------ stop strings


def find(pieces: list[str], stop: tuple[str, ...], include: bool = False) -> tuple[str, str | None]:
    finder = StopStringFinder(stop, include)
    shown = ""
    for piece in pieces:
        text, match = finder.push(piece)
        shown += text
        if match is not None:
            return shown, match
    return shown + finder.finish(), None


def test_stop_strings_do_not_depend_on_the_splits() -> None:
    for seed in range(500):
        generator = random.Random(seed)
        text = "".join(generator.choices("abc", k=generator.randrange(1, 30)))
        stop = tuple(
            "".join(generator.choices("abc", k=generator.randrange(1, 5))) for _ in range(generator.randrange(5))
        )
        cuts = sorted(generator.sample(range(len(text) + 1), generator.randrange(min(len(text), 8))))
        pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        shown, match = find(list(text), stop)
        assert find(pieces, stop) == find([text], stop) == (shown, match)
        if match is None:
            assert shown == text
            assert not any(each in text for each in stop)
        else:
            assert text.startswith(shown + match)
            assert not any(each in (shown + match)[:-1] for each in stop)
            assert find(pieces, stop, include=True) == (shown + match, match)


def test_what_was_held_back_is_shown_at_the_end() -> None:
    assert find(["Question", ":"], ("Question: ",)) == ("Question:", None)


def run(
    tokenizer: Tokenizer, text: str, params: SamplingParams, form: TextForm = PLAIN_TEXT
) -> tuple[str, str, str | None]:
    """Thoughts, answer, stop string."""
    detokenizer = Detokenizer(tokenizer, params, form)
    reasoning = shown = ""
    for token_id in tokenizer.encode(text):
        piece = detokenizer.push(token_id)
        reasoning, shown = reasoning + piece.reasoning, shown + piece.text
        if piece.stop is not None:
            return reasoning, shown, piece.stop
    piece = detokenizer.finish()
    return reasoning + piece.reasoning, shown + piece.text, piece.stop


def test_stop_string_over_tokens_and_bytes(tokenizer: Tokenizer) -> None:
    assert run(tokenizer, "one 🦊🦊 two", SamplingParams(stop=("🦊 t",))) == ("", "one 🦊", "🦊 t")


def test_min_tokens_come_before_any_stop_string(tokenizer: Tokenizer) -> None:
    assert run(tokenizer, "7,7,7", SamplingParams(stop=(",",))) == ("", "7", ",")
    assert run(tokenizer, "7,7,7", SamplingParams(stop=(",",), min_tokens=2)) == ("", "7,7", ",")


def test_stop_strings_count_in_the_answer_only(tokenizer: Tokenizer) -> None:
    text, thinking = "a, b\n</think>\n\n7,7", TextForm(thinking=True)
    assert run(tokenizer, text, SamplingParams(stop=(",",)), thinking) == ("a, b", "7", ",")
    assert run(tokenizer, text, SamplingParams(stop=("\n",)), thinking) == ("a, b", "7,7", None)
    assert run(tokenizer, text, SamplingParams(stop=("think>",)), thinking) == ("a, b", "7,7", None)
    assert run(tokenizer, text, SamplingParams(stop=("think>",))) == ("", "a, b\n</", "think>")
    assert run(tokenizer, "a, b 🦊"[:-1], SamplingParams(stop=(",",)), thinking) == ("a, b ", "", None)


def test_thoughts_are_counted_to_their_end(tokenizer: Tokenizer) -> None:
    detokenizer = Detokenizer(tokenizer, SamplingParams(), TextForm(thinking=True))
    for token_id in tokenizer.encode("1,2</think>3,4"):
        detokenizer.push(token_id)
    assert (detokenizer.num_reasoning_tokens, detokenizer.is_thinking) == (4, False)
