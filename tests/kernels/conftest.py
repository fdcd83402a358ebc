"""Kernel tests run on poisoned memory."""

from tests.poison import poisoned

__all__ = ["poisoned"]
