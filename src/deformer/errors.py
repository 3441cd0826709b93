"""What can go wrong, by whose hand it is mended."""


class DeformerError(Exception):
    """Any error that this library raises on purpose."""


class InputError(DeformerError, ValueError):
    """An argument, a value or a file that the caller can put right."""


class CheckpointError(DeformerError, ValueError):
    """A file of weights that is unreadable, truncated, foreign or of another model."""


class SourceError(DeformerError, OSError):
    """A data set that is neither on this machine nor downloadable."""


class TrainingError(DeformerError, RuntimeError):
    """A training that cannot go on, such as one whose loss is not finite."""
