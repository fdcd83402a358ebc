"""Tables of the constants of signals are kept, and their number is bounded."""

import torch
from irm_fast.kernels import batch
from irm_fast.kernels.batch import Batch

CPU = torch.device("cpu")


def table(rate: float) -> torch.Tensor:
    feedback = torch.zeros(1, 1, dtype=torch.int8)
    return Batch(feedback, None, None, None, None, (1.0,), (rate,), None, False, False, None).signal_table(CPU)


def test_a_rate_that_changes_at_each_step_fills_no_memory():
    for step in range(3 * batch._KEPT):
        assert float(table(0.1 + step / 10_000)[1, 0]) == torch.tensor(0.1 + step / 10_000)
        assert len(batch._tables) <= batch._KEPT
    assert table(0.25) is table(0.25)
    assert not batch._captured
