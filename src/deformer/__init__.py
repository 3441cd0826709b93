"""Order-agnostic density estimation with the DEformer: p(any feature | any others, observed in any order)."""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "deformer.errors": ("CheckpointError", "DeformerError", "InputError", "SourceError", "TrainingError"),
    "deformer.config": ("ModelConfig", "TrainConfig", "paper_config", "paper_training"),
    "deformer.data.schema": (
        *("Binary", "Categorical", "Continuous", "Feature", "Ordinal", "Schema", "image_schema", "table_schema"),
    ),
    "deformer.data.table": ("Rows", "as_rows"),
    "deformer.data.sources": ("load_source",),
    "deformer.data.seeds": ("generator",),
    "deformer.nn.model": ("DEformer", "State", "new_model"),
    "deformer.nn.heads": ("Conditionals",),
    "deformer.nn.authors": ("from_authors_state_dict",),
    "deformer.tasks.density": ("NLL", "log_prob", "log_prob_terms", "nll"),
    "deformer.tasks.sampling": ("sample",),
    "deformer.tasks.imputation": ("impute",),
    "deformer.tasks.calibration": ("calibrate",),
    "deformer.tasks.pool": ("SessionPool",),
    "deformer.tasks.streaming": ("Alarms", "Session", "Surprise"),
    "deformer.train.fit": ("fit",),
    "deformer.api.defaults": ("suited",),
    "deformer.api.online": ("DEformerStream",),
    "deformer.api.pretrained": ("pretrained",),
    "deformer.api.detectors": ("DEformerDetector", "DEformerPyOD"),
    "deformer.api.estimators": ("DEformerDensity", "DEformerImputer"),
    "deformer.train.checkpoint": ("load", "save"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
__all__ = ["__version__", *sorted(_HOME_OF)]

if TYPE_CHECKING:
    from deformer.api.defaults import suited
    from deformer.api.detectors import DEformerDetector, DEformerPyOD
    from deformer.api.estimators import DEformerDensity, DEformerImputer
    from deformer.api.online import DEformerStream
    from deformer.api.pretrained import pretrained
    from deformer.config import ModelConfig, TrainConfig, paper_config, paper_training
    from deformer.data.schema import (
        Binary,
        Categorical,
        Continuous,
        Feature,
        Ordinal,
        Schema,
        image_schema,
        table_schema,
    )
    from deformer.data.seeds import generator
    from deformer.data.sources import load_source
    from deformer.data.table import Rows, as_rows
    from deformer.errors import CheckpointError, DeformerError, InputError, SourceError, TrainingError
    from deformer.nn.authors import from_authors_state_dict
    from deformer.nn.heads import Conditionals
    from deformer.nn.model import DEformer, State, new_model
    from deformer.tasks.calibration import calibrate
    from deformer.tasks.density import NLL, log_prob, log_prob_terms, nll
    from deformer.tasks.imputation import impute
    from deformer.tasks.pool import SessionPool
    from deformer.tasks.sampling import sample
    from deformer.tasks.streaming import Alarms, Session, Surprise
    from deformer.train.checkpoint import load, save
    from deformer.train.fit import fit


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that importing the package costs nothing."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'deformer' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)
