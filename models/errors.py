"""The error of a checkpoint that cannot be served."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be served; one line that names the file and, where there is one, the tensor."""
