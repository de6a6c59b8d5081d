"""What the engine says of a request that it does not answer, or not to its end."""


class RequestEndedError(Exception):
    """``code``: "queue_full", "invalid_request", "invalid_numbers", "sampling_failed", or "aborted"."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.message, self.code = message, code
