"""What a checkpoint that cannot be served raises."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be served; one line that names the file and, where there is one, the tensor."""
