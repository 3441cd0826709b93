"""Knows which questions conditionals answer; must not know how a model is trained, stored or served."""
