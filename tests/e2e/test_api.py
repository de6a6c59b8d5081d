"""The OpenAI API of a real server over two stages, through the real client."""

import math
from typing import Any

import pytest

from tests.e2e.servers import Server

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
PROMPT = "The quick brown fox"
SAMPLED = {"temperature": 1.0, "seed": 7}


def ask_chat(server: Server, **options: Any) -> Any:
    given = {"model": server.model, "messages": QUESTION, "max_tokens": 24, "temperature": 0, **options}
    return server.client.chat.completions.create(**given)


def complete(server: Server, **options: Any) -> Any:
    given = {"model": server.model, "prompt": PROMPT, "max_tokens": 24, "temperature": 0, **options}
    return server.client.completions.create(**given)


def token_ids(server: Server, **options: Any) -> list[int]:
    choice = complete(server, extra_body={"return_token_ids": True}, **options).choices[0]
    return choice.token_ids


# ------------------------------------------------------------------ the small routes


def test_models_health_ready(server: Server) -> None:
    (model,) = server.client.models.list().data
    assert (model.id, model.object, model.max_model_len) == ("demo", "model", 2048)
    assert server.client.models.retrieve("demo").id == "demo"
    assert server.http.get("/health").json() == {"status": "ok", "phase": "ready"}
    assert server.http.get("/ready").status_code == 200


def test_metrics_count_tokens_and_steps(server: Server) -> None:
    names = ("vllm:prompt_tokens_total", "vllm:generation_tokens_total")
    before = [server.metric(name) for name in names]
    usage = complete(server).usage
    after = [server.metric(name) for name in names]
    assert [b - a for a, b in zip(before, after, strict=True)] == [usage.prompt_tokens, usage.completion_tokens]


# ------------------------------------------------------------------ streamed and not


@pytest.mark.parametrize("sampling", [{"temperature": 0}, SAMPLED], ids=["greedy", "seeded"])
def test_chat_streams_what_it_answers(server: Server, sampling: dict[str, Any]) -> None:
    whole = ask_chat(server, **sampling)
    chunks = list(ask_chat(server, stream=True, stream_options={"include_usage": True}, **sampling))
    *parts, last, usage = chunks
    assert parts[0].choices[0].delta.role == "assistant"
    assert "".join(part.choices[0].delta.content or "" for part in parts) == whole.choices[0].message.content
    assert last.choices[0].finish_reason == whole.choices[0].finish_reason == "length"
    assert (usage.choices, usage.usage) == ([], whole.usage)
    assert whole.usage.completion_tokens == 24
    assert len({chunk.id for chunk in chunks}) == 1


@pytest.mark.parametrize("sampling", [{"temperature": 0}, SAMPLED], ids=["greedy", "seeded"])
def test_completions_stream_what_they_answer(server: Server, sampling: dict[str, Any]) -> None:
    whole = complete(server, **sampling)
    chunks = list(complete(server, stream=True, **sampling))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert whole.choices[0].text
    assert all(chunk.usage is None for chunk in chunks)


def test_the_stream_ends_with_done(server: Server) -> None:
    body = {"prompt": PROMPT, "max_tokens": 3, "stream": True}
    with server.http.stream("POST", "/v1/completions", json=body) as response:
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        events = [line for line in response.iter_lines() if line]
    assert events[-1] == "data: [DONE]"
    assert all(event.startswith("data: {") for event in events[:-1])


# ------------------------------------------------------------------ what a request may ask


def test_logprobs(server: Server) -> None:
    entries = ask_chat(server, logprobs=True, top_logprobs=3).choices[0].logprobs.content
    assert len(entries) == 24
    for entry in entries:
        best = entry.top_logprobs[0]
        assert (entry.token, entry.logprob) == (best.token, best.logprob)  # greedy
        values = [top.logprob for top in entry.top_logprobs]
        assert len(values) == 3
        assert values == sorted(values, reverse=True)
        assert sum(map(math.exp, values)) <= 1 + 1e-6  # three of float32
    choice = complete(server, logprobs=2).choices[0]
    shown = ["\ufffd" if token.startswith("bytes:") else token for token in choice.logprobs.tokens]
    assert "".join(shown) == choice.text
    assert [len(top) for top in choice.logprobs.top_logprobs] == [2] * 24
    assert max(choice.logprobs.token_logprobs) <= 0


def test_n_answers_have_seeds_of_their_own(server: Server) -> None:
    choices = ask_chat(server, n=6, **SAMPLED).choices
    assert [choice.index for choice in choices] == [*range(6)]
    texts = [choice.message.content for choice in choices]
    assert len(set(texts)) > 1  # it knows few things to say to this
    assert texts[0] == ask_chat(server, **SAMPLED).choices[0].message.content
    assert texts == [choice.message.content for choice in ask_chat(server, n=6, **SAMPLED).choices]


def test_prompts_as_text_ids_and_lists(server: Server) -> None:
    choice = complete(server, extra_body={"return_token_ids": True}).choices[0]
    ids, text = choice.prompt_token_ids, choice.text
    assert complete(server, prompt=ids).choices[0].text == text
    assert [c.text for c in complete(server, prompt=[ids, ids]).choices] == [text, text]
    assert [c.text for c in complete(server, prompt=[PROMPT, "Another", PROMPT]).choices][::2] == [text, text]
    assert complete(server, echo=True).choices[0].text == PROMPT + text
    assert server.http.get("/ready").status_code == 200


def test_a_stop_string_ends_the_answer_before_it(server: Server) -> None:
    text = complete(server).choices[0].text
    stop = text[len(text) // 2 :][:3]
    answer = complete(server, stop=[stop])
    choice = answer.choices[0]
    assert (choice.finish_reason, choice.stop_reason) == ("stop", stop)
    assert choice.text == text[: text.index(stop)]
    assert answer.usage.completion_tokens < 24
    streamed = "".join(chunk.choices[0].text for chunk in complete(server, stop=[stop], stream=True))
    assert streamed == choice.text
    kept = complete(server, stop=[stop], extra_body={"include_stop_str_in_output": True}).choices[0].text
    assert kept == choice.text + stop


def test_a_stop_token_ends_the_answer(server: Server) -> None:
    ids = token_ids(server)
    stop = ids[5]
    choice = complete(server, extra_body={"stop_token_ids": [stop], "return_token_ids": True}).choices[0]
    assert choice.token_ids == ids[: ids.index(stop) + 1]
    assert (choice.finish_reason, choice.stop_reason) == ("stop", stop)


def biased_to_the_end(server: Server, **extra: Any) -> Any:
    """The end of sequence is all but certain wherever it is allowed."""
    return complete(server, logit_bias={"4046": 100}, extra_body=extra)


def test_end_of_sequence_min_tokens_and_ignore_eos(server: Server) -> None:
    at_once = biased_to_the_end(server)
    assert (at_once.choices[0].finish_reason, at_once.usage.completion_tokens) == ("stop", 1)
    assert at_once.choices[0].text == ""
    later = biased_to_the_end(server, min_tokens=6)
    assert (later.choices[0].finish_reason, later.usage.completion_tokens) == ("stop", 7)
    never = biased_to_the_end(server, ignore_eos=True)
    assert (never.choices[0].finish_reason, never.usage.completion_tokens) == ("length", 24)


PENALTIES = [{"frequency_penalty": 2.0}, {"presence_penalty": 2.0}, {"repetition_penalty": 10.0}]


@pytest.mark.parametrize("penalty", PENALTIES, ids=str)
def test_penalties_break_a_repetition(server: Server, penalty: dict[str, Any]) -> None:
    first, second = 4047, 4049  # never met in training: equally improbable, but for the bias
    repeating = {"logit_bias": {str(first): 100, str(second): 99}, "max_tokens": 24}
    assert token_ids(server, **repeating) == [first] * 24
    choice = complete(server, **repeating, extra_body={"return_token_ids": True, **penalty}).choices[0]
    assert choice.token_ids[:2] == [first, second]


def test_sampling_limits_to_one_candidate_are_greedy(server: Server) -> None:
    greedy = token_ids(server)
    for limit in ({"top_k": 1}, {"min_p": 1.0}):
        body = {"return_token_ids": True, **limit}
        assert complete(server, temperature=1.0, extra_body=body).choices[0].token_ids == greedy
    assert token_ids(server, temperature=1.0, top_p=1e-6) == greedy
    assert token_ids(server, temperature=1.0, seed=3) != greedy


def test_default_lengths(server: Server) -> None:
    body = {"prompt": PROMPT, "ignore_eos": True}
    assert server.http.post("/v1/completions", json=body).json()["usage"]["completion_tokens"] == 16
    long = [{"role": "user", "content": " the" * 1900}]
    usage = ask_chat(server, messages=long, max_tokens=None, extra_body={"ignore_eos": True}).usage
    assert usage.prompt_tokens > 1900
    assert usage.total_tokens == 2048  # all that the context leaves


def test_usage_says_what_came_from_the_prefix_cache(server: Server) -> None:
    prompts = [[(3 * index) % 4000 for index in range(200)] + [100 + number] for number in range(3)]
    usages = [complete(server, prompt=prompt, max_tokens=1).usage for prompt in prompts]
    assert [usage.prompt_tokens_details.cached_tokens for usage in usages] == [0, 192, 192]
    stream = {"stream": True, "stream_options": {"include_usage": True}}
    *_, last = complete(server, prompt=prompts[0], max_tokens=1, **stream)
    assert last.usage.prompt_tokens_details.cached_tokens == 192
    twice = complete(server, prompt=prompts[1], max_tokens=1, n=2, temperature=1.0).usage
    assert (twice.prompt_tokens, twice.prompt_tokens_details.cached_tokens) == (201, 192)


# ------------------------------------------------------------------ thinking, and the APIs of agents


def test_the_three_apis_of_chats_say_the_same(server: Server) -> None:
    asked = {"model": server.model, "temperature": 0}
    chat = ask_chat(server, max_tokens=200).choices[0].message
    response = server.client.responses.create(**asked, input=QUESTION[0]["content"], max_output_tokens=200)
    assert response.output_text == chat.content
    assert response.output[0].content[0].text == chat.reasoning_content
    body = {**asked, "messages": QUESTION, "max_tokens": 200, "thinking": {"type": "adaptive"}}
    thought, text = server.http.post("/v1/messages", json=body).json()["content"]
    assert (thought["thinking"], text["text"]) == (chat.reasoning_content, chat.content)


def test_thoughts_are_apart_from_the_answer(server: Server) -> None:
    problem = [{"role": "user", "content": "Mia has 14 shells. Leo has 9 more shells than Mia. How many have they?"}]
    whole = ask_chat(server, messages=problem, max_tokens=256, stop=["In all"])
    message = whole.choices[0].message
    assert (whole.choices[0].stop_reason, message.content) == ("In all", message.content.partition("In all")[0])
    assert "In all" in message.reasoning_content
    assert message.reasoning_content == message.reasoning
    assert "14 + 9" in message.reasoning_content
    assert "think>" not in message.reasoning_content + message.content
    stream = ask_chat(server, messages=problem, max_tokens=256, stop=["In all"], stream=True)
    deltas = [chunk.choices[0].delta for chunk in stream]
    assert "".join(getattr(delta, "reasoning_content", "") for delta in deltas) == message.reasoning_content
    assert "".join(delta.content or "" for delta in deltas) == message.content
    usage = whole.usage
    assert 0 < usage.completion_tokens_details.reasoning_tokens < usage.completion_tokens
    direct = ask_chat(server, messages=problem, max_tokens=256, reasoning_effort="none").choices[0].message
    assert direct.reasoning_content is None
    assert "14 + 9" in direct.content


def test_a_harness_scores_continuations(server: Server) -> None:
    """As lm-eval does: prompts as ids, of which the last ones are judged. The likeliest continuation is found to be so,
    and prompts that share a beginning, which the prefix cache keeps, are computed whole."""
    prompt = (
        complete(server, max_tokens=70, extra_body={"return_token_ids": True, "ignore_eos": True}).choices[0].token_ids
    )
    likely = token_ids(server, prompt=prompt, max_tokens=6)
    asked = [prompt + likely, prompt + likely[:2] + [likely[2] + 1]]
    for _ in range(3):
        answer = complete(server, prompt=asked, max_tokens=1, logprobs=1, echo=True)
        (good, bad), usage = [choice.logprobs for choice in answer.choices], answer.usage
        assert usage.prompt_tokens_details.cached_tokens == 0
        for one, ids in ((good, asked[0]), (bad, asked[1])):
            assert len(one.token_logprobs) == len(one.tokens) == len(one.text_offset) == len(ids) + 1
            assert one.token_logprobs[0] is None
        greedy = [
            own == max(top.values())
            for own, top in zip(good.token_logprobs[70:-1], good.top_logprobs[70:-1], strict=True)
        ]
        assert greedy == [True] * 6
        assert bad.token_logprobs[72] < max(bad.top_logprobs[72].values())
