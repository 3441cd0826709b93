"""Under the tests every shape annotation of the package is checked at each call."""

from jaxtyping import install_import_hook

install_import_hook("deformer", "beartype.beartype")
