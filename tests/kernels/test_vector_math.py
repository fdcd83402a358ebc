"""Every function of vector_math.h against its contract: valid arguments and greatest error in ulp, for every copy.

The contracts are read from the header itself, so that header and test cannot disagree.
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

HEADER = Path(__file__).parents[2] / "kernels" / "cpu" / "vector_math.h"
CONTRACT = re.compile(r"// Contract (\d+): (\w+)\(.*?\)\S* for x in \[(\S+), (\S+)\](.*?): ([\d.]+) ulp")
POINTS = 200_000
# Where sigmoid and softplus are farthest off, of all float32 numbers (each was tried once, on the copy for AVX2).
WORST = np.array([1.95424449, 2.7570076, -1.95424449, -2.7570076], np.float32)
Wide = np.longdouble


def sigmoid(x: np.ndarray) -> np.ndarray:
    e = np.exp(-np.abs(x))
    return np.where(x < 0, e, 1) / (1 + e)


def softplus(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


# In the order of the contracts: the function of x, and of a second argument y where there is one.
TRUTH: list[Callable[[np.ndarray, np.ndarray], np.ndarray]] = [
    lambda x, y: np.exp(x),
    lambda x, y: np.expm1(x),
    lambda x, y: np.log1p(x),
    lambda x, y: np.where(x > 0.5, -np.log1p(-y), -np.log(x)),
    lambda x, y: -np.abs(x),
    lambda x, y: sigmoid(x),
    lambda x, y: sigmoid(-x),
    lambda x, y: softplus(x),
    lambda x, y: softplus(-x),
    lambda x, y: (np.expm1(x - y)) * sigmoid(y) * sigmoid(-x),
]
CONTRACTS = [match.groups() for match in map(CONTRACT.search, HEADER.read_text().splitlines()) if match]


def arguments(number: int, low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    """Float32 arguments spread over the bit patterns of a range, tiny ones and the ends among them, and y."""
    rng = np.random.default_rng(number)
    sides = []
    for sign, end in ((1, high), (-1, -low)):
        if end > 0:
            least = max(sign * low, sign * high if sign * high < sign * low else 0, 1e-38) if low > 0 else 1e-38
            bits = np.linspace(np.float32(least).view(np.int32), np.float32(end).view(np.int32), POINTS // 2)
            sides.append(sign * bits.astype(np.int32).view(np.float32))
    x = np.concatenate([*sides, WORST, rng.uniform(low, high, POINTS // 2).astype(np.float32)])
    x = np.clip(x, np.float32(low), np.float32(high))
    if number == 3:  # p and 1 - p, the smaller of the two exact
        other = np.float32(1) - x
        return np.concatenate([x, other[other > 0.5]]), np.concatenate([other, x[other > 0.5]])
    return x, rng.permutation(x)


def measure(number: int) -> float:
    """The greatest error of a function over its arguments, in ulp of the result."""
    from irm_fast.kernels.cpu.library import library

    _, _, low, high, _, _ = CONTRACTS[number]
    x, y = arguments(number, float(low), float(high))
    out = np.empty_like(x)
    pointers = [array.ctypes.data_as(ctypes.c_void_p) for array in (x, y, out)]
    library.irm_check_vector_math(ctypes.c_int64(number), *pointers, ctypes.c_int64(len(x)))
    with np.errstate(divide="ignore", invalid="ignore"):  # in the branch that is not taken
        want = TRUTH[number](x.astype(Wide), y.astype(Wide))
    normal = np.abs(want) >= np.finfo(np.float32).tiny
    ulp = np.spacing(np.abs(want[normal]).astype(np.float32))
    assert normal.sum() > POINTS // 2
    return float((np.abs(out[normal] - want[normal]) / ulp).max())


def test_every_function_has_a_contract() -> None:
    assert [int(number) for number, *_ in CONTRACTS] == list(range(len(TRUTH)))
    functions = set(re.findall(r"^inline \w+ (\w+)\(", HEADER.read_text(), flags=re.M))
    assert functions - {"from_bits", "to_bits"} == {name for _, name, *_ in CONTRACTS}


@pytest.mark.parametrize("copy", ["baseline", "avx2", "avx512"])
def test_contracts_hold(copy: str) -> None:
    """Errors are below what the header states, and not so far below that it states nothing."""
    program = "from tests.kernels import test_vector_math as t\n"
    program += "from irm_fast.kernels.cpu.library import INSTRUCTION_SET\n"
    program += "print(INSTRUCTION_SET, *(t.measure(n) for n in range(len(t.TRUTH))))"
    environment = {**os.environ, "IRM_FAST_ISA": copy}
    run = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=HEADER.parents[2], capture_output=True, text=True
    )
    if "was not built" in run.stderr:
        pytest.skip("the C++ kernel was not built")
    assert run.returncode == 0, run.stderr
    name, *errors = run.stdout.split()
    if name != copy:
        pytest.skip(f"this processor has no {copy}")
    for error, (_, function, _, _, _, bound) in zip(map(float, errors), CONTRACTS, strict=True):
        assert error <= float(bound) <= max(4 * error, 1), f"{function}: off by {error:.2f} ulp, stated {bound}"


def test_special_values() -> None:
    from irm_fast.kernels.cpu.library import library

    inf, nan = np.inf, np.nan
    cases = {0: [(-inf, 0), (-100, 0), (0, 1), (nan, nan)], 1: [(-inf, -1), (0, 0)], 5: [(-inf, 0), (inf, 1)]}
    cases |= {6: [(inf, 0), (-inf, 1)], 7: [(-inf, 0), (inf, inf)], 2: [(0, 0)]}
    for number, pairs in cases.items():
        x, want = (np.array(column, np.float32) for column in zip(*pairs, strict=True))
        out = np.empty_like(x)
        pointers = [array.ctypes.data_as(ctypes.c_void_p) for array in (x, x, out)]
        library.irm_check_vector_math(ctypes.c_int64(number), *pointers, ctypes.c_int64(len(x)))
        np.testing.assert_array_equal(out, want, err_msg=CONTRACTS[number][1])
