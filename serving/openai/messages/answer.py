"""The object of a message, and the events of its stream, in Anthropic's order."""

import json
import uuid
from typing import Any

from splitrank.serving.openai.blocks import Block, Blocks, Step
from splitrank.serving.openai.requests import ParsedRequest
from splitrank.serving.openai.usage import Usage
from splitrank.serving.text.text_engine import TextOutput

Event = dict[str, Any]  # with its type


class MessageWriter:
    """``add`` the outputs, then ``finish``; each gives the events for a stream. ``whole`` is the message then."""

    def __init__(self, request: ParsedRequest, model: str) -> None:
        self._request = request
        self._model = model
        self._id = "msg_" + uuid.uuid4().hex
        self._blocks = Blocks()
        self._has_begun = False
        self._reason: str | None = None
        self._stop_sequence: str | None = None
        self._usage = {"input_tokens": request.num_prompt_tokens, "output_tokens": 0}

    def add(self, output: TextOutput) -> list[Event]:
        events: list[Event] = []
        if not self._has_begun:
            self._has_begun = True
            self._count(0, output.num_cached_tokens)
            events = [{"type": "message_start", "message": self.whole()}, {"type": "ping"}]
        for step in self._blocks.add(output):
            events += _events(step)
        if output.finish_reason is not None:
            self._end(output)
        return events

    def finish(self, usage: Usage) -> list[Event]:
        counts = usage.whole()
        self._count(counts["completion_tokens"], counts["prompt_tokens_details"]["cached_tokens"])
        delta = {"stop_reason": self._reason, "stop_sequence": self._stop_sequence}
        return [{"type": "message_delta", "delta": delta, "usage": self._usage}, {"type": "message_stop"}]

    def whole(self) -> dict[str, Any]:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": [_whole_block(block) for block in self._blocks.blocks],
            "stop_reason": self._reason,
            "stop_sequence": self._stop_sequence,
            "usage": self._usage,
        }

    def _end(self, output: TextOutput) -> None:
        if output.finish_reason == "length":
            self._reason = "max_tokens"
        elif output.has_calls:
            self._reason = "tool_use"
        elif isinstance(output.stop_reason, str):
            self._reason, self._stop_sequence = "stop_sequence", output.stop_reason
        else:
            self._reason = "end_turn"

    def _count(self, num_output: int, num_cached: int) -> None:
        """Tokens from the cache are no input tokens in this API."""
        self._usage = {
            "input_tokens": self._request.num_prompt_tokens - num_cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": num_cached,
            "output_tokens": num_output,
        }


def _events(step: Step) -> list[Event]:
    block = step.block
    if step.action == "begins":
        return [{"type": "content_block_start", "index": block.index, "content_block": _empty_block(block)}]
    if step.action == "gains":
        return [_delta(block, step.text)]
    ends: list[Event] = [{"type": "content_block_stop", "index": block.index}]
    if block.kind == "thinking":  # clients wait for a signature before a thought is whole
        signature = {"type": "signature_delta", "signature": ""}
        ends.insert(0, {"type": "content_block_delta", "index": block.index, "delta": signature})
    return ends


def _delta(block: Block, text: str) -> Event:
    names = {"text": ("text_delta", "text"), "thinking": ("thinking_delta", "thinking")}
    kind, name = names.get(block.kind, ("input_json_delta", "partial_json"))
    return {"type": "content_block_delta", "index": block.index, "delta": {"type": kind, name: text}}


def _empty_block(block: Block) -> dict[str, Any]:
    if block.kind == "call":
        return {"type": "tool_use", "id": f"toolu_{block.key[:24]}", "name": block.name, "input": {}}
    return {"type": block.kind, block.kind: ""} | ({"signature": ""} if block.kind == "thinking" else {})


def _whole_block(block: Block) -> dict[str, Any]:
    value = _arguments(block.text) if block.kind == "call" else block.text
    return {**_empty_block(block), "input" if block.kind == "call" else block.kind: value}


def _arguments(text: str) -> Any:
    """The object; of a call that was cut off, what is whole of it."""
    for ending in ("", '"}', "}"):
        try:
            return json.loads(text + ending)
        except ValueError:
            pass
    shorter, found, _ = text.rpartition(', "')
    return _arguments(shorter) if found else {}
