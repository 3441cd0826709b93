"""Lets `python -m deformer` stand for the command."""

from deformer.api.cli import main

main()
