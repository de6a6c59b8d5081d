"""The error that clients get."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from splitrank.serving.text.request_errors import RequestEndedError


class ApiError(Exception):
    """An answer that is an error object: HTTP status, one line for the user, and the parameter at fault."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type
        self.param = param
        self.code = code
        self.headers = headers or {}

    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    return ApiError(400, message, param=param, code=code)


def unavailable(message: str, code: str, retry_after_s: int = 1) -> ApiError:
    """503: the same request may succeed later, or elsewhere."""
    return ApiError(503, message, type="server_error", code=code, headers={"Retry-After": str(retry_after_s)})


def context_length_exceeded(max_model_len: int, num_prompt_tokens: int | str, param: str) -> ApiError:
    message = (
        f"This model's maximum context length is {max_model_len} tokens, "
        f"but your prompt contains {num_prompt_tokens} tokens."
    )
    return bad_request(message, param, "context_length_exceeded")


def with_flat_tools(error: ApiError) -> ApiError:
    """An error about a chat, in the terms of an API that has ``tools[0].name`` for ``tools[0].function.name``."""
    if error.param is not None and error.param.startswith("tools["):
        flat = error.param.replace(".function.", ".", 1)
        error.message, error.param = error.message.replace(error.param, flat), flat
    return error


@contextmanager
def engine_errors_as_api_errors() -> Iterator[None]:
    """Turns an engine's error about a request into an ``ApiError`` with its status."""
    try:
        yield
    except RequestEndedError as error:
        if error.code == "invalid_request":
            raise bad_request(error.message) from error
        if error.code in ("invalid_numbers", "sampling_failed"):  # to repeat the request would not help
            raise ApiError(500, error.message, type="server_error", code=error.code) from error
        raise unavailable(error.message, error.code) from error
