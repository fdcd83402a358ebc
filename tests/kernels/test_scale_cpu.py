"""The scaling of gradients in the backward pass on CPUs: PyTorch's product and rounding, whatever the threads."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("irm_fast.kernels.cpu.library", exc_type=ImportError)
from irm_fast.kernels.cpu.scale import _FEW, scale_gradients


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("n", [1, _FEW + 5, 3 * 2**16 + 1])
def test_the_product_is_rounded_once(n: int, dtype: torch.dtype) -> None:
    grads: list[torch.Tensor | None] = [torch.randn(n) * 10.0 ** torch.randint(-8, 5, (n,)), None, torch.randn(n, 3)]
    upstream = torch.tensor(-0.37)
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            got = scale_gradients(grads, upstream, [dtype] * 3, kept=False)
            for x, grad in zip(got, grads, strict=True):
                assert x is None if grad is None else torch.equal(x, (grad * upstream).to(dtype))
    finally:
        torch.set_num_threads(threads)


def test_upstream_gradients_that_differ_between_rows() -> None:
    n = _FEW + 5
    grad, upstream = torch.randn(n, 2), torch.randn(n)
    (got,) = scale_gradients([grad], upstream, [torch.bfloat16], kept=False)
    assert torch.equal(got, (grad * upstream[:, None]).bfloat16())


def test_a_gradient_is_given_away_only_where_it_is_the_result() -> None:
    grad, one = torch.randn(5), torch.tensor(1.0)
    for upstream, dtype, kept, same in (
        (one, torch.float32, False, True),
        (one, torch.float32, True, False),
        (one, torch.bfloat16, False, False),
        (-one, torch.float32, False, False),
        (torch.ones(5), torch.float32, False, False),
    ):
        (got,) = scale_gradients([grad], upstream, [dtype], kept)
        assert (got is grad) == same
        assert torch.equal(got, (grad * upstream).to(dtype))
