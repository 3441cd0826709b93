"""Under the tests every shape annotation of the package is checked at each call."""

from jaxtyping import install_import_hook

# The rooms that hold tensors. What a config or a caller hands in is checked by the code itself, which the tests test.
ROOMS = ["data", "nn", "tasks", "train", "baselines"]

install_import_hook([f"deformer.{room}" for room in ROOMS], "beartype.beartype")
