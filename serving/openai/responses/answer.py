"""The object of a response, and the events of its stream, in OpenAI's order."""

import time
import uuid
from typing import Any

from splitrank.serving.openai.blocks import Block, Blocks, Step
from splitrank.serving.openai.logprobs import TokenNames
from splitrank.serving.openai.requests import ParsedRequest
from splitrank.serving.openai.responses.text_logprobs import TextLogprobs
from splitrank.serving.openai.usage import Usage
from splitrank.serving.text.text_engine import TextOutput

Event = dict[str, Any]  # with its type
_PREFIX = {"thinking": "rs_", "text": "msg_", "call": "fc_"}


class ResponseWriter:
    """``add`` the outputs, then ``finish``; each gives the events for a stream. ``whole`` is the response then."""

    def __init__(self, request: ParsedRequest, model: str, names: TokenNames) -> None:
        self._request = request
        self._model = model
        self._id = "resp_" + uuid.uuid4().hex
        self._created = int(time.time())
        self._blocks = Blocks()
        self._logprobs = TextLogprobs(names)
        self._num_events = 0
        self._status = "in_progress"
        self._usage: dict[str, Any] | None = None
        self._is_cut = False

    def add(self, output: TextOutput) -> list[Event]:
        self._is_cut = output.finish_reason == "length"
        events = [] if self._num_events else [self._whole_event("created"), self._whole_event("in_progress")]
        self._logprobs.add(output)
        for step in self._blocks.add(output):
            if output.calls and (step.action == "ends" or step.block.kind == "call"):
                self._logprobs.drop()
            events += self._events(step)
        return events

    def finish(self, usage: Usage) -> list[Event]:
        self._status = "incomplete" if self._is_cut else "completed"
        counts = usage.whole()
        self._usage = {
            "input_tokens": counts["prompt_tokens"],
            "input_tokens_details": counts["prompt_tokens_details"],
            "output_tokens": counts["completion_tokens"],
            "output_tokens_details": counts["completion_tokens_details"],
            "total_tokens": counts["total_tokens"],
        }
        return [self._whole_event(self._status)]

    def whole(self) -> dict[str, Any]:
        params = self._request.generations[0].params
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": self._status,
            "background": False,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if self._status == "incomplete" else None,
            "model": self._model,
            "output": [self._item(block) for block in self._blocks.blocks] if self._usage else [],
            "previous_response_id": None,
            "store": False,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "truncation": "disabled",
            "usage": self._usage,
            **self._request.echo,
        }

    # -------------------------------------------------------------- items

    def _item(self, block: Block, is_new: bool = False) -> dict[str, Any]:
        is_last = block is self._blocks.blocks[-1]
        status = "in_progress" if is_new else "incomplete" if self._is_cut and is_last else "completed"
        item: dict[str, Any] = {"id": _PREFIX[block.kind] + block.key, "status": status}
        text = "" if is_new else block.text
        match block.kind:
            case "call":
                call = {"call_id": f"call_{block.key[:24]}", "name": block.name, "arguments": text}
                return {**item, "type": "function_call", **call}
            case "thinking":
                content = [] if is_new else [self._part(block, text)]
                return {**item, "type": "reasoning", "summary": [], "content": content, "encrypted_content": None}
            case _:
                content = [] if is_new else [self._part(block, text)]
                return {**item, "type": "message", "role": "assistant", "content": content}

    # -------------------------------------------------------------- events

    def _events(self, step: Step) -> list[Event]:
        block = step.block
        if step.action == "begins":
            added = self._event("output_item.added", output_index=block.index, item=self._item(block, is_new=True))
            return [added, *self._part_events("added", block, "")]
        if step.action == "gains":
            return [self._text_event("delta", block, self._logprobs.take(block), delta=step.text)]
        self._logprobs.take(block)
        done = {"arguments" if block.kind == "call" else "text": block.text}
        return [
            self._text_event("done", block, self._logprobs.whole(block), **done),
            *self._part_events("done", block, block.text),
            self._event("output_item.done", output_index=block.index, item=self._item(block)),
        ]

    def _part_events(self, what: str, block: Block, text: str) -> list[Event]:
        if block.kind == "call":
            return []
        return [self._event(f"content_part.{what}", **self._place(block), part=self._part(block, text))]

    def _text_event(self, what: str, block: Block, logprobs: Any, **fields: Any) -> Event:
        if block.kind == "text":
            fields["logprobs"] = logprobs
        name = {"call": "function_call_arguments", "thinking": "reasoning_text", "text": "output_text"}[block.kind]
        return self._event(f"{name}.{what}", **self._place(block), **fields)

    def _part(self, block: Block, text: str) -> dict[str, Any]:
        if block.kind == "thinking":
            return {"type": "reasoning_text", "text": text}
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": self._logprobs.whole(block)}

    def _place(self, block: Block) -> dict[str, Any]:
        place = {"item_id": _PREFIX[block.kind] + block.key, "output_index": block.index}
        return place if block.kind == "call" else {**place, "content_index": 0}

    def _whole_event(self, what: str) -> Event:
        return self._event(what, response=self.whole())

    def _event(self, what: str, **fields: Any) -> Event:
        number, self._num_events = self._num_events, self._num_events + 1
        return {"type": f"response.{what}", "sequence_number": number, **fields}
