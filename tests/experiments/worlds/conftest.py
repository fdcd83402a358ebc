"""The answers of the small worlds."""

from __future__ import annotations

import pytest

from irm_fast.experiments.worlds.texts import Texts, make_texts
from tests.experiments.worlds.small_worlds import ROWS, TEST


@pytest.fixture(scope="module")
def texts() -> Texts:
    return make_texts(TEST + ROWS, 0)
