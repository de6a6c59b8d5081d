"""The error of a request that the engine refuses or ends early."""


class RequestEndedError(Exception):
    """``code``: "queue_full", "invalid_request", "invalid_numbers", "sampling_failed", or "aborted"."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.message, self.code = message, code
