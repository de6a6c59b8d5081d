"""Errors of the communication layer."""


class CommunicationError(RuntimeError):
    """A peer died, was silent for too long, or sent another message than agreed; one line that says who and what."""


def one_line(error: Exception) -> str:
    """What ``error`` says, without line breaks, or its type."""
    return " ".join((str(error) or type(error).__name__).split())
