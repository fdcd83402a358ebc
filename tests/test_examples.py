"""The examples in docstrings do what they say."""

from __future__ import annotations

import doctest
import importlib

import pytest

MODULES = [
    *("irm_fast.losses.implicit", "irm_fast.losses.linear", "irm_fast.losses.dispatch", "irm_fast.training.config"),
    *("irm_fast.training.run", "irm_fast.embeddings.estimator", "irm_fast.diagnostics.diagnosis"),
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.attempted and not result.failed
