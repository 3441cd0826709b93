"""Knows the models that a DEformer is compared with; must not know how it works inside."""
