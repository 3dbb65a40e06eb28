"""The command `ndc`."""

from pipeline.cli.commands import main

__all__ = ["main"]
