"""The command line."""

from irm_fast.cli.commands import app, main

__all__ = ["app", "main"]
