"""Fresh memory full of NaN, for kernel tests: an element that no kernel writes shows.

`poisoned` is a fixture that tests/losses/conftest.py and tests/kernels/conftest.py apply to every test. The filling is
torch's own: an allocator that is replaced from outside stays in caches of torch, and changes the tests that come later.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch


@contextmanager
def fresh_memory(*, filled: bool) -> Iterator[None]:
    """A context in which torch fills what it allocates with NaN, or the largest integer, or leaves it as it is."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory  # torch's default, without which nothing is filled
    torch.use_deterministic_algorithms(filled, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """Applied to every test."""
    with fresh_memory(filled=True):
        yield
