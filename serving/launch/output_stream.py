"""The outputs of one request, between the task that reads the engine's messages and the task that reads the request."""

import asyncio
from collections.abc import Iterator

import msgspec

from splitrank.serving.protocol.messages import RequestOutput


class OutputStream:
    """A queue for one reader that joins what waits: a reader that is late gets all tokens since then in one output.

    So a front that falls behind the engine has less work for each token, and catches up.
    """

    def __init__(self) -> None:
        self._waiting: list[RequestOutput] = []
        self._reader: asyncio.Future[None] | None = None
        self._is_closed = False

    def put(self, output: RequestOutput) -> None:
        self._waiting.append(output)
        self._wake()

    def close(self) -> None:
        """No more outputs come. The reader gets those that wait, then None."""
        self._is_closed = True
        self._wake()

    async def get(self) -> RequestOutput | None:
        """All that has come since the last call, as one output; an error stays apart from the tokens before it."""
        while not self._waiting:
            if self._is_closed:
                return None
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        waiting, self._waiting = self._waiting, []
        if len(waiting) == 1:  # the reader is in time
            return waiting[0]
        if waiting[-1].finish_reason in ("error", "abort"):
            self._waiting = [waiting.pop()]
        return _joined(waiting)

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)


def _joined(outputs: list[RequestOutput]) -> RequestOutput:
    """Successive outputs of a request as one."""
    last = outputs[-1]
    logprobs = [logprob for output in outputs for logprob in output.logprobs or ()]
    of_prompt = [logprob for output in outputs for logprob in output.prompt_logprobs or ()]
    return RequestOutput(
        request_id=last.request_id,
        token_ids=[token for output in outputs for token in output.token_ids],
        logprobs=logprobs or None,
        finish_reason=last.finish_reason,
        stop_token_id=last.stop_token_id,
        error=last.error,
        error_code=last.error_code,
        num_cached_tokens=max(output.num_cached_tokens for output in outputs),
        prompt_logprobs=of_prompt or None,
        digests=[digest for output in outputs for digest in output.digests],
    )


def token_by_token(output: RequestOutput) -> Iterator[RequestOutput]:
    """An output of several tokens as it would have come to a reader in time: one output for each token."""
    last = len(output.token_ids) - 1
    if last < 1:
        yield output
        return
    for index, token_id in enumerate(output.token_ids):
        yield msgspec.structs.replace(
            output,
            token_ids=[token_id],
            logprobs=None if output.logprobs is None else output.logprobs[index : index + 1],
            finish_reason=output.finish_reason if index == last else None,
            stop_token_id=output.stop_token_id if index == last else None,
            prompt_logprobs=None if index else output.prompt_logprobs,
            digests=output.digests[index : index + 1],
        )
