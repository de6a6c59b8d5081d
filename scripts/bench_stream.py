"""CPU time of the front for a streamed token: from the engine's message to the event's bytes, without sockets.

``python scripts/bench_stream.py [--streams 64] [--steps 400]`` prints JSON lines: microseconds a token if the front
reads each step of the engine at once, and if it is late, so that several steps wait for it.
"""

import argparse
import asyncio
import json
import statistics
import time

from splitrank.serving.launch.demo_checkpoint import demo_checkpoint_path
from splitrank.serving.launch.engine_client import EngineClient
from splitrank.serving.launch.launcher import remove_run_dir
from splitrank.serving.launch.resolve import resolve_launch
from splitrank.serving.openai.requests import ParsedRequest
from splitrank.serving.openai.service import OpenAIService
from splitrank.serving.options.config import EngineConfig
from splitrank.serving.protocol.messages import RequestOutput, RequestOutputs, StepOutputs
from splitrank.serving.protocol.wire import decode_engine_to_front, encode
from splitrank.serving.text.model_info import model_info
from splitrank.serving.text.text_engine import TextEngine
from splitrank.serving.text.tokenizer import Tokenizer

STEPS_AT_ONCE = (1, 4)
TURNS = 8  # of the event loop, more than a token takes on its way


async def measure(num_streams: int, num_steps: int, at_once: int) -> dict[str, object]:
    spec = resolve_launch(EngineConfig(max_queued_requests=num_streams))
    client = EngineClient(spec)
    tokenizer = Tokenizer.from_folder(str(demo_checkpoint_path()))
    service = OpenAIService(TextEngine(client, tokenizer, model_info(spec, "")))
    body = {"prompt": "Question:", "max_tokens": num_steps + 1, "temperature": 0, "stream": True}
    request = service.parse("/v1/completions", json.dumps(body).encode())
    assert isinstance(request, ParsedRequest)

    async def read() -> None:
        async for _ in service.stream_events(request):
            pass

    tasks = [asyncio.create_task(read()) for _ in range(num_streams)]
    await asyncio.sleep(0)
    spent, tokens = [], tokenizer.encode("Natalia sold 48 stickers in April and half as many in May. ")
    names = [str(number) for number in range(num_streams)]
    for step in range(0, num_steps, at_once):
        chosen = [tokens[number % len(tokens)] for number in range(step, step + at_once)]
        messages = [encode(RequestOutputs([StepOutputs(names, [token] * num_streams)])) for token in chosen]
        began = time.thread_time_ns()
        for message in messages:
            client._on_message(decode_engine_to_front(message))
        for _ in range(TURNS):
            await asyncio.sleep(0)
        spent.append((time.thread_time_ns() - began) / 1000 / num_streams / at_once)
    ends = [RequestOutput(name, [tokens[0]], finish_reason="length") for name in names]
    client._on_message(RequestOutputs([StepOutputs(others=ends)]))
    await asyncio.gather(*tasks)
    client._socket.close()
    remove_run_dir(client._spec.run_dir)
    better = sorted(spent)[: len(spent) * 6 // 10]
    return {"streams": num_streams, "steps_at_once": at_once, "us_a_token": round(statistics.median(better), 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--steps", type=int, default=400)
    args = parser.parse_args()
    for at_once in STEPS_AT_ONCE:
        print(json.dumps(asyncio.run(measure(args.streams, args.steps, at_once))), flush=True)


if __name__ == "__main__":
    main()
