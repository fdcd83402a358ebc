"""The memory on which kernel tests run, and what it must not do to the tests that come after them."""

import torch

from tests.poison import fresh_memory


def test_fresh_memory_is_filled_and_then_no_more():
    like = torch.ones(4)
    with fresh_memory(filled=True):
        fresh = [torch.empty(4), torch.empty_like(like), torch.empty_strided((4,), (1,)), like.new_empty(4)]
        assert all(memory.isnan().all() for memory in fresh)
        assert bool((torch.empty(4, dtype=torch.int8) == 127).all())
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_device_context_still_works_after_it():
    """transformers builds a model on the device `meta`; where that fails, it draws other weights for a new head."""
    torch.utils._device._device_constructors.cache_clear()  # as in a process that has not built a model yet
    with fresh_memory(filled=True), torch.device("meta"):
        assert torch.empty(1).is_meta
    with torch.device("meta"):
        assert torch.empty(1).is_meta and torch.nn.Linear(2, 2).weight.is_meta
