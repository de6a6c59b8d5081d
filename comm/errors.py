"""Errors of the communication layer."""


class CommunicationError(RuntimeError):
    """A peer died, was silent past its limit, or sent something else than agreed; one line that says who and what."""
