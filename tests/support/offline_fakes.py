"""A model without processes, for the doors that need an engine: its answers are a function of the prompt's text."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from splitrank.serving.protocol.messages import EngineStats, RequestOutput, TokenLogprobs
from splitrank.serving.protocol.sampling_params import SamplingParams
from splitrank.serving.text.model_info import model_info
from splitrank.serving.text.text_engine import PreparedModel, TextEngine
from splitrank.serving.text.tokenizer import Tokenizer
from tests.support.fake_model import small_spec
from tests.support.tiny_tokenizer import write_tokenizer

VOCAB_SIZE = 1000
Script = Callable[[str], str | Exception | RequestOutput]


def prepared_model(folder: Path, **changes: object) -> PreparedModel:
    """A checkpoint folder without weights, and what ``prepare_model`` makes of it."""
    write_tokenizer(folder, VOCAB_SIZE)
    (folder / "config.json").write_text("{}")
    values = {"vocab_size": VOCAB_SIZE, "max_model_len": 4096, "num_pages": 4096, "max_running_requests": 8} | changes
    spec = small_spec(model_dir=str(folder), **values)
    return PreparedModel(spec, Tokenizer.from_folder(folder), model_info(spec, str(folder)), [])


def echo(prompt: str) -> str:
    return prompt.upper()


class ScriptedClient:
    """``script(prompt)`` is the answer's text, an exception to raise, or an output to end with. One token a turn."""

    def __init__(self, tokenizer: Tokenizer, script: Script) -> None:
        self.reports: list[str] = []
        self.stats: EngineStats | None = None
        self.death: str | None = None
        self.died = asyncio.Event()
        self.tokenizer = tokenizer
        self.script = script
        self.prompts: list[str] = []
        self.params: list[SamplingParams] = []
        self.num_open = self.most_open = self.num_broken_off = 0
        self.num_closed = 0
        self.digest: Callable[[str, int], bytes] = lambda prompt, token: b""  # of the logits of an answer's token

    async def stream(self, prompt_token_ids: list[int], params: SamplingParams) -> AsyncIterator[RequestOutput]:
        prompt = self.tokenizer.decode(prompt_token_ids)
        self.prompts.append(prompt)
        self.params.append(params)
        self.num_open += 1
        self.most_open = max(self.most_open, self.num_open)
        finished = False
        try:
            await asyncio.sleep(0)
            answer = self.script(prompt)
            if isinstance(answer, Exception):
                raise answer
            if isinstance(answer, RequestOutput):
                yield answer
                return
            for output in self._outputs(prompt, answer, params):
                await asyncio.sleep(0)
                finished = output.finish_reason is not None
                yield output
        finally:
            self.num_open -= 1
            self.num_broken_off += not finished

    def _outputs(self, prompt: str, answer: str, params: SamplingParams) -> list[RequestOutput]:
        wanted = self.tokenizer.encode(answer)
        tokens = wanted[: params.max_tokens]
        reason = "length" if len(tokens) == params.max_tokens else "stop"
        logprobs = None if params.logprobs is None else [TokenLogprobs(-0.5, [], [])]
        digests = [[digest] if (digest := self.digest(prompt, place)) else [] for place in range(len(tokens))]
        outputs = [
            RequestOutput("r", [token], logprobs, digests=of_token)
            for token, of_token in zip(tokens[:-1], digests[:-1], strict=True)
        ]
        last = digests[-1] if digests else []
        return [*outputs, RequestOutput("r", tokens[-1:], logprobs if tokens else None, reason, digests=last)]

    async def close(self) -> None:
        self.num_closed += 1


class ScriptedEngines:
    """Stands for ``start_prepared``: a new scripted engine at each start, kept for the test to look at."""

    def __init__(self, script: Script = echo) -> None:
        self.script = script
        self.clients: list[ScriptedClient] = []
        self.started: list[PreparedModel] = []

    async def start(self, prepared: PreparedModel) -> TextEngine:
        client = ScriptedClient(prepared.tokenizer, self.script)
        self.clients.append(client)
        self.started.append(prepared)
        return TextEngine(client, prepared.tokenizer, prepared.info)
