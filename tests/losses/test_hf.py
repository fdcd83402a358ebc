"""The loss function for `transformers.Trainer`: rows from its count of labels, packed labels, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import irm_fast
from irm_fast.losses.signal_heads import SignalLogits
from tests.losses.loss_cases import NAN, make

N = 24


def counted(*labels: Tensor) -> Tensor:
    """As the Trainer counts the labels of a step."""
    return sum(part.ne(-100).sum() for part in labels)  # type: ignore[return-value]


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("dtype", [torch.int64, torch.float32], ids=str)
def test_the_loss_is_the_mean_over_the_rows_of_the_step(k: int, dtype: torch.dtype) -> None:
    """In micro-batches of any size, with the count of the Trainer, that of N K entries."""
    s, t, f = make(N, k)
    options: dict[str, Any] = {"polarity": [1, -1][:k], "misclick_rate": 0.1}
    loss_func = irm_fast.hf.compute_loss_func(**options)
    want = irm_fast.implicit_rm_loss(s, t, f, **options)
    labels = f.to(dtype)
    for sizes in ([N], [10, 10, 4], [1, N - 1]):
        parts = [*zip(*(x.split(sizes) for x in (s, t, labels)), strict=True)]
        count = counted(*(part[2] for part in parts))
        for items in (count, int(count), count.float()):
            total = sum(loss_func({"logits": a[:, None], "propensity_logits": b}, c, items) for a, b, c in parts)
            torch.testing.assert_close(total, want, rtol=1e-6, atol=0)
    naive = irm_fast.implicit_rm_loss(s, t, f, normalizer=counted(labels), **options)
    assert k == 1 or (naive / want - 1 / k).abs() < 1e-6  # what the count as a normalizer would give


def test_outputs_and_labels_of_every_form() -> None:
    s, t, f = make(N, 1)
    loss_func, count = irm_fast.hf.compute_loss_func(), N
    want = irm_fast.implicit_rm_loss(s, t, f)
    for outputs in (
        SignalLogits(s, t),
        {"reward_logits": s, "propensity_logits": t[:, 0]},
        {"logits": s[:, None], "propensity_logits": t, "hidden_states": None},
    ):
        for labels in (f, f[:, 0], torch.where(f == -1, NAN, f.float())):
            torch.testing.assert_close(loss_func(outputs, labels, count), want)
            torch.testing.assert_close(loss_func(outputs, labels, num_items_in_batch=None), want)  # in evaluation


@pytest.mark.parametrize("shape", [(), (2,)])
def test_outputs_may_hold_constants(shape: tuple) -> None:
    s, _, f = make(N, 2)
    constants, weight = torch.full(shape, -0.5), torch.linspace(0, 2, N)
    want = irm_fast.implicit_rm_loss(s, constants, f, weight=weight)
    labels = torch.cat([f, weight[:, None]], 1)
    loss_func = irm_fast.hf.compute_loss_func(columns=["weight"])
    outputs = {"logits": s, "propensity_logits": constants}
    torch.testing.assert_close(loss_func(outputs, labels, counted(labels)), want)
    with pytest.raises(ValueError, match=r"propensity_logits must have shape \(24,\) .* \(1,\) or \(\)"):
        loss_func({"logits": s, "propensity_logits": torch.zeros(2)}, labels[:, 1:], N)


@pytest.mark.parametrize("columns", [("preference",), ("weight",), ("preference", "weight"), ("weight", "preference")])
def test_labels_hold_preference_and_weight(columns: tuple) -> None:
    s, t, f = make(N, 2)
    preference = torch.arange(N) % 3 - 1
    preference[(f == 1).any(1)] = 1
    given: dict[str, Any] = {"preference": preference, "weight": torch.linspace(0, 2, N)}
    given = {name: given[name] for name in columns}
    want = irm_fast.implicit_rm_loss(s, t, f, **given)
    assert not torch.equal(want, irm_fast.implicit_rm_loss(s, t, f))
    labels = torch.cat([f, *(x[:, None] for x in given.values())], 1)
    loss_func = irm_fast.hf.compute_loss_func(columns=columns)
    torch.testing.assert_close(loss_func(SignalLogits(s, t), labels, counted(labels)), want)
    if columns[0] == "preference" or len(columns) == 1:
        packed = irm_fast.hf.pack_labels(f.numpy(), **given)
        assert packed.dtype == np.float32 and np.array_equal(packed, labels.numpy())


def test_packed_labels_hold_what_frames_give() -> None:
    f = np.array([[1.0, NAN], [0, 1], [-1, 0]])
    assert irm_fast.hf.pack_labels(f).tolist() == [[1, -1], [0, 1], [-1, 0]]
    assert irm_fast.hf.pack_labels(f[:, 0] == 1, preference=[NAN, 1, 0]).tolist() == [[1, -1], [0, 1], [0, 0]]
    assert irm_fast.hf.pack_labels(torch.tensor([1, 0]), weight=[0.5, 2]).tolist() == [[1, 0.5], [0, 2]]


S, T, F = make(4, 2)
F[F == -1] = 0
GOOD: dict[str, Any] = {"outputs": SignalLogits(S, T), "labels": F, "num_items_in_batch": torch.tensor(8)}
REFUSED: dict[str, tuple[type[Exception], str, dict[str, Any]]] = {
    "-100": (
        ValueError,
        "labels: got -100, which the Trainer does not count.*expected -1",
        {"labels": F.long().where(F != 1, -100)},
    ),
    "another value": (ValueError, "feedback holds a value other than", {"labels": F.float() + 0.5}),
    "no labels": (TypeError, r"labels: got NoneType.*label_names=\[.labels.\]", {"labels": None}),
    "a dictionary": (TypeError, "labels: got dict; expected one tensor", {"labels": {"feedback": F}}),
    "a column too many": (
        ValueError,
        r"labels: got shape \(4, 3\); expected \(N, 2\) of feedback: further columns are named in",
        {"labels": torch.cat([F, F[:, :1]], 1)},
    ),
    "one dimension": (ValueError, r"labels: got shape \(4,\); expected \(N, 2\)", {"labels": F[:, 0]}),
    "no propensities": (ValueError, r"outputs: got \['logits'\]; expected reward_logits", {"outputs": {"logits": S}}),
    "a tensor": (ValueError, "outputs: got Tensor; expected reward_logits", {"outputs": S}),
    "two labels": (ValueError, "reward_logits must have shape", {"outputs": {"logits": T, "propensity_logits": T}}),
    "no count": (
        ValueError,
        "num_items_in_batch: got None; expected the Trainer's count",
        {"num_items_in_batch": None, "outputs": SignalLogits(S.clone().requires_grad_(), T)},
    ),
    "several counts": (
        ValueError,
        r"num_items_in_batch: got shape \(2, 1\).*torchrun",
        {"num_items_in_batch": torch.ones(2, 1)},
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case: str) -> None:
    error, message, changed = REFUSED[case]
    loss_func = irm_fast.hf.compute_loss_func()
    loss_func(**GOOD)
    with pytest.raises(error, match=message):
        loss_func(**{**GOOD, **changed})


def test_refused_columns_and_values() -> None:
    for columns in (("rating",), ("weight", "weight")):
        with pytest.raises(ValueError, match=r"columns: got .*; expected some of"):
            irm_fast.hf.compute_loss_func(columns=columns)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="normalizer"):
        irm_fast.hf.compute_loss_func(normalizer=4)  # type: ignore[call-arg]
    for wrong, message in (
        ({"feedback": [[1, -100]]}, "feedback: got -100.*expected -1 or NaN"),
        ({"feedback": [[1, 0.5]]}, "feedback must be 1"),
        ({"feedback": [1], "preference": [-100]}, "preference: got -100"),
        ({"feedback": [1], "weight": [-1.0]}, "weight must be finite and not negative"),
        ({"feedback": [1, 0], "weight": [1.0]}, r"weight must have shape \(2,\), got \(1,\)"),
        ({"feedback": [[[1]]]}, r"feedback must have shape \(N,\) or \(N, K\), got \(1, 1, 1\)"),
    ):
        with pytest.raises(ValueError, match=message):
            irm_fast.hf.pack_labels(**wrong)
