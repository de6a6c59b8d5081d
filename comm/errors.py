"""Errors of the communication layer."""


class CommunicationError(RuntimeError):
    """A peer died, was silent for too long, or sent another message than agreed; one line that says who and what."""
