"""Tests of training run quickly."""

import gc

import pytest
import torch


@pytest.fixture(scope="module", autouse=True)
def quick():
    """One thread, and no collection of what was imported: accelerate collects garbage before every run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.freeze()  # what the tests before have imported, beside what was there when they were collected
    yield
    torch.set_num_threads(threads)
