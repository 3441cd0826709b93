"""What can go wrong, by whose hand it is mended."""


class DeformerError(Exception):
    """Any error that this library raises on purpose."""


class InputError(DeformerError, ValueError):
    """An invalid argument, value or file that the caller can correct."""


class CheckpointError(DeformerError, ValueError):
    """A weights file that is unreadable, truncated, of another kind or of another model."""


class SourceError(DeformerError, OSError):
    """A data set that is neither on this machine nor downloadable, or whose file is corrupt."""


class TrainingError(DeformerError, RuntimeError):
    """A training run that cannot continue, such as one whose loss is not finite."""
