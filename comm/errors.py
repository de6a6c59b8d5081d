"""Errors of the communication layer."""


class CommunicationError(RuntimeError):
    """A peer died, was silent for too long, or sent another message than agreed; one line that says who and what."""


class SecretMismatch(CommunicationError):
    """Two ends did not prove the same secret to each other: they have different ones, or the other end left then."""


def one_line(error: Exception) -> str:
    """What ``error`` says, without line breaks, or its type."""
    return " ".join((str(error) or type(error).__name__).split())
