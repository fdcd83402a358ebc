"""Other forms of arguments in the form that the kernels read: codes of floating point, and constants for all rows."""

from __future__ import annotations

import torch
from torch import Tensor

_BLOCK = 4096  # rows whose gradients of a constant are summed as one
_SERIAL = 32768  # entries: PyTorch sums fewer in one thread
_NOT_A_CODE = 2


def integer_codes(codes: Tensor) -> Tensor:
    """Return codes as integers: those of floating point as int8, with NaN as -1.

    Nothing waits for the device: a value that is no code becomes 2, which the kernels refuse like any other.

    Args:
        codes: Codes such as feedback (1 acted, 0 silent, -1 or NaN not recorded), of any shape and real dtype.
    """
    if not codes.is_floating_point():
        return codes
    filled = codes.nan_to_num(-1.0, _NOT_A_CODE, _NOT_A_CODE)
    whole = filled.to(torch.int8)
    return torch.where(whole == filled, whole, _NOT_A_CODE)


def is_of_signals(logits: Tensor, rows: torch.Size) -> bool:
    """Whether logits are constants, () of all signals or (K,) of each, and not yet those of rows.

    Args:
        logits: The logits.
        rows: The shape of the logits of rows: (N,) of one signal, or (N, K).
    """
    if not logits.dim():
        return True
    shape = logits.shape
    return shape != rows and shape == (rows[1:] if len(rows) == 2 else (1,))


def for_every_row(logits: Tensor, rows: torch.Size) -> Tensor:
    """Return constants as logits of rows, a view of float32 or float64 whose gradient is the sum over the rows.

    The sum is taken in float32 at least and is rounded once, in the dtype of the constants; its bits do not depend on
    the number of threads.

    Args:
        logits: Constants of signals, see `is_of_signals`.
        rows: The shape of the result: (N,) of one signal, or (N, K).
    """
    if logits.dtype not in (torch.float32, torch.float64):
        logits = logits.float()
    n = rows[0]
    if torch.compiler.is_compiling() or rows.numel() < _SERIAL:
        return logits.expand(rows)
    blocks, rest = -(-n // _BLOCK), rows[1:]
    return logits.expand(blocks, 1, *rest).expand(blocks, _BLOCK, *rest).reshape(blocks * _BLOCK, *rest)[:n]
