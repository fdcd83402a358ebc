"""Runs cases in the emulator and compares them with the float64 reference.

python -m tests.gpu_static.emulate "loss K=1"         print what was found, as JSON
python -m tests.gpu_static.emulate "loss" --quick     the same for what the tests run by default
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import numpy as np

from tests.gpu_static.budgets import TABLE, chosen

SEED = 7  # of the errors of approximate functions
ODD = 13  # rows more than whole tiles
PROCESSORS = 1


def rows_of(name: str) -> tuple[int, int]:
    """A multiple of 16 and none: at least two programs, and more tiles than programs where these loop."""
    if name.startswith("linear"):
        return 32, 21
    if name.startswith("pointwise"):
        return 2048, 1039
    rows = 4 * max(record["rows"] for record in json.loads(TABLE.read_text())["sm_90"][name])
    return rows, rows + ODD


def check(name: str, rows: int) -> dict[str, Any]:
    """Greatest error of each result, and the traffic of each kernel."""
    import torch

    from tests.gpu_static.cases import CASES
    from tests.gpu_static.launches import emulating

    case = CASES[name]
    inputs = case.inputs(rows)
    torch.use_deterministic_algorithms(True)  # fills empty tensors with NaN: what no kernel writes shows
    with emulating(SEED, PROCESSORS) as launches:
        got = case.step(inputs, "triton")
    torch.use_deterministic_algorithms(False)
    want = case.step(inputs.doubled(), "reference")
    errors = {
        # Most of a bias gradient cancels, that of the weights, as many terms of the same size, does not.
        result: error_of(x, want[result], inputs.learned.get(result[2:]), want[result.replace("bias", "weight")])
        for result, x in got.items()
    }
    kernels = [
        {
            "kernel": launch.kernel.name,
            "programs": launch.grid,
            "instructions": sum(emulator.executed.values()),
            **{kind: [x.sectors, x.ideal, max(x.widths, default=0)] for kind, x in emulator.memory.traffic.items()},
        }
        for launch, emulator in launches
    ]
    return {"case": name, "rows": rows, "errors": errors, "kernels": kernels}


def check_tails(k: int) -> dict[str, Any]:
    """Errors of losses and gradients of rows above 1e-30, for logits as far as 10,000 from 0.

    They are relative to each, beyond what float32 loses of the power of e that is taken out of a row: the sum of all
    positive parts of logits, each addition rounded (docs/why/numerics.md). Of one signal that is exact.
    """
    import torch

    from tests.gpu_static.cases import Case, Inputs
    from tests.gpu_static.launches import emulating

    ends = torch.tensor([0.0, 0.5, 5.0, 30.0, 90.0, 200.0, 1e4])
    corners = torch.cartesian_prod(*[torch.cat([-ends[1:], ends])] * 2)
    drawn = torch.randn(512 - len(corners), 2, generator=torch.Generator().manual_seed(k)) * 30
    logits = torch.cat([corners, drawn])
    propensity = torch.stack([logits[:, 1], *[logits[:, 0] / 3 + 1] * (k - 1)], 1)
    power = propensity.clamp(min=0).sum(1) + logits[:, 0].abs()
    lost = ((k - 1) * 2.0**-24 * power).double().numpy()[:, None]
    found: dict[str, Any] = {"signals": k, "errors": {}, "finite": True}
    for feedback in ([0] * k, [1] + [0] * (k - 1), [0] * (k - 1) + [-1]):
        codes = torch.tensor([feedback] * len(logits), dtype=torch.int8)
        inputs = Inputs({"reward": logits[:, 0], "propensity": propensity}, {"feedback": codes, "reduction": "none"})
        with emulating(SEED):
            got = Case(k).step(inputs, "triton")
        want = exact(logits[:, 0].tolist(), propensity.tolist(), feedback)
        want[:, 1:] *= np.linspace(0.5, 1.5, len(logits))[:, None]  # the upstream gradient of a case
        for name, columns in {"loss": slice(0, 1), "d reward": slice(1, 2), "d propensity": slice(2, None)}.items():
            x = got[name].double().numpy().reshape(len(logits), -1)
            found["finite"] &= bool(np.isfinite(x).all())
            large = np.abs(want[:, columns]) > 1e-30
            errors = (np.abs(x - want[:, columns]) / np.maximum(np.abs(want[:, columns]), 1e-30) - lost)[large]
            found["errors"][name] = max(errors.max(initial=0.0), found["errors"].get(name, 0.0))
    return found


def exact(reward: list[float], propensity: list[list[float]], feedback: list[int]) -> Any:
    """Loss and its gradients of rows of one feedback, (N, 2 + K), from 100 digits: the float64 reference has 16."""
    from mpmath import MPContext

    mp = MPContext()
    mp.dps = 100
    result = np.zeros((len(reward), 2 + len(feedback)))
    for i, (s, logits) in enumerate(zip(reward, propensity, strict=True)):
        g, not_g = 1 / (1 + mp.exp(-s)), 1 / (1 + mp.exp(s))
        m = [1 / (1 + mp.exp(-t)) for t in logits]
        silent = mp.fprod(1 / (1 + mp.exp(t)) for t, f in zip(logits, feedback, strict=True) if f == 0)
        acted = mp.fprod(x for x, f in zip(m, feedback, strict=True) if f == 1)
        likelihood = g * silent * acted + (0 if 1 in feedback else not_g)
        q = g * silent * acted / likelihood
        result[i, :2] = -mp.log(likelihood), -not_g if 1 in feedback else g * not_g * (1 - silent) / likelihood
        for k, f in enumerate(feedback):
            other = 1 / (1 + mp.exp(logits[k]))
            result[i, 2 + k] = -other if f == 1 else q * m[k] if f == 0 else 0
    return result


def error_of(got: Any, want: Any, like: Any, beside: Any) -> float:
    """The greatest error, relative to the greatest value here or beside, beyond the rounding to the result's dtype."""
    import torch

    if like is not None and got.dtype != like.dtype:
        raise TypeError(f"a gradient of {like.dtype} came as {got.dtype}")
    wide = got.double()
    if not wide.isfinite().all():
        return float("inf")
    finest = {torch.bfloat16: 2.0**-9, torch.float16: 2.0**-12}.get(got.dtype, 0.0)  # a half step, to the value above
    step = finest * 2 * torch.exp2(torch.ceil(torch.log2(want.abs().clamp(min=2.0**-14))))
    return float((((wide - want).abs() - step).clamp(min=0.0)).max() / max(want.abs().max(), beside.abs().max()))


def main(part: str, quick: str = "") -> None:
    os.environ.pop("TRITON_INTERPRET", None)
    if part == "--tails":
        print(json.dumps([check_tails(k) for k in (1, 2, 4)]))
        return
    names = [name for name in chosen("sm_90", quick) if part in name]
    print(json.dumps([check(name, rows) for name in names for rows in rows_of(name)[1 if quick else 0 :]]))


if __name__ == "__main__":
    main(*sys.argv[1:])
