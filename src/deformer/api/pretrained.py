"""Models that ship with the package."""

from importlib import resources
from pathlib import Path

from deformer.errors import InputError
from deformer.nn.model import DEformer
from deformer.train.checkpoint import load

SHIPPED = ("mnist-binarized",)


def shipped_path(name: str) -> Path:
    """Find the weights of a model that ships.

    Raises:
        InputError: No model of this name ships.
    """
    if name not in SHIPPED:
        raise InputError(f"No model called {name!r} ships with this package; there is {', '.join(SHIPPED)}.")
    return Path(str(resources.files("deformer"))) / "weights" / f"{name}.safetensors"


def pretrained(name: str) -> DEformer:
    """Load a model that ships with deformer, on the CPU, ready to use.

    Args:
        name: "mnist-binarized", 28 x 28 binary images of digits; its model card is beside its weights.

    Raises:
        InputError: No model of this name ships.

    Examples:
        >>> len(pretrained("mnist-binarized").schema)
        784
    """
    return load(shipped_path(name)).eval()
