"""What `linear_implicit_rm_loss` refuses: every message names the argument, what was got and what is expected."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

import irm_fast
from tests.losses.test_linear_loss import F64

HIDDEN, FEEDBACK = torch.zeros(4, 6), torch.zeros(4, 2, dtype=torch.int8)
SOUND = {"hidden": HIDDEN, "reward_weight": HIDDEN[0], "propensity_weight": HIDDEN[:2], "feedback": FEEDBACK}
GIVEN = {"propensity_weight": None, "propensity_logits": torch.zeros(2)}
STATES = "hidden must have shape (N, H), one pooled state a row, got "
SHAPES = "feedback must have shape (4,) or (4, K) with K from 1 to 16, got "
FLOATS, TENSOR = " must be float32, bfloat16, float16 or float64, got torch.", " must be a torch.Tensor, got "
CODES, ELSEWHERE = (
    " must be bool, integer (1, 0, -1) or floating point (1, 0, -1, NaN), got torch.",
    " is on meta, the first argument on cpu",
)
CONSTANTS = " as the feedback has, or (2,) or () for constants, got "
EITHER = "give either propensity_weight (heads) or propensity_logits (constants or logits)"
SHAPES_OF_HEADS: list[tuple[str, tuple, tuple, str]] = [  # as wanted, as given; those of torch.nn.Linear get a hint
    ("reward_weight", (6,), (5,), ""),
    ("reward_weight", (6,), (1, 6), "; use reward_weight.squeeze(0)"),
    ("reward_bias", (), (4,), ""),
    ("reward_bias", (), (1,), "; use reward_bias.squeeze(0)"),
    ("propensity_weight", (2, 6), (3, 6), ""),
    ("propensity_weight", (2, 6), (6, 2), ""),
    ("propensity_weight", (2, 6), (1, 2, 6), "; use propensity_weight.squeeze(0)"),
    ("propensity_bias", (2,), (1,), ""),
    ("propensity_bias", (2,), (1, 2), "; use propensity_bias.squeeze(0)"),
]
REFUSED: list[tuple[type[Exception], str, dict[str, Any]]] = [
    (TypeError, "hidden" + TENSOR + "list", {"hidden": [[0.0]]}),
    (TypeError, "hidden" + FLOATS + "int64", {"hidden": HIDDEN.long()}),
    (TypeError, "hidden must be an ordinary dense tensor (to_dense(), resolve_neg())", {"hidden": HIDDEN.to_sparse()}),
    (ValueError, STATES + "(2, 2, 6)", {"hidden": HIDDEN.reshape(2, 2, 6)}),
    (ValueError, STATES + "(6,)", {"hidden": HIDDEN[0]}),
    (ValueError, STATES + "(4, 0)", {"hidden": HIDDEN[:, :0]}),
    (ValueError, "feedback is on cpu, the first argument on meta", {"hidden": HIDDEN.to("meta")}),
    (TypeError, "feedback" + TENSOR + "NoneType", {"feedback": None}),
    (TypeError, "feedback" + CODES + "complex64", {"feedback": FEEDBACK.to(torch.complex64)}),
    (ValueError, "feedback" + ELSEWHERE, {"feedback": FEEDBACK.to("meta")}),
    *((ValueError, SHAPES + str(tuple(x.shape)), {"feedback": x})
      for x in (FEEDBACK[:3], FEEDBACK[:3, 0], FEEDBACK[:, :0], FEEDBACK[None], FEEDBACK.repeat(1, 9)[:, :17])),
    (TypeError, "reward_weight" + TENSOR + "NoneType", {"reward_weight": None}),
    (TypeError, "reward_weight" + FLOATS + "int32", {"reward_weight": HIDDEN[0].int()}),
    (ValueError, "reward_weight" + ELSEWHERE, {"reward_weight": HIDDEN[0].to("meta")}),
    (TypeError, "reward_bias" + TENSOR + "float", {"reward_bias": 0.5}),
    (TypeError, "propensity_weight" + FLOATS + "bool", {"propensity_weight": HIDDEN[:2].bool()}),
    (ValueError, "propensity_weight" + ELSEWHERE, {"propensity_weight": HIDDEN[:2].to("meta")}),
    (ValueError, "propensity_weight must have shape (1, 6), got (2, 6)$", {"feedback": FEEDBACK[:, 0]}),
    *((ValueError, f"{name} must have shape {wanted}, got {got}{hint}$", {name: torch.zeros(got)})
      for name, wanted, got, hint in SHAPES_OF_HEADS),
    (ValueError, "propensity_bias belongs to propensity_weight; constants go into propensity_logits",
     {**GIVEN, "propensity_bias": torch.zeros(2)}),
    (ValueError, EITHER, {"propensity_logits": torch.zeros(2)}),
    (ValueError, EITHER, {"propensity_weight": None}),
    (TypeError, "propensity_logits" + TENSOR + "list", {**GIVEN, "propensity_logits": [0.0, 0.0]}),
    (TypeError, "propensity_logits" + FLOATS + "int8", {**GIVEN, "propensity_logits": FEEDBACK}),
    (ValueError, "propensity_logits" + ELSEWHERE, {**GIVEN, "propensity_logits": torch.zeros(2, device="meta")}),
    (ValueError, "propensity_logits are float64, hidden is not: convert one of them",
     {**GIVEN, "propensity_logits": torch.zeros(2, dtype=F64)}),
    *((ValueError, f"propensity_logits must have shape (4, 2){CONSTANTS}{x}",
       {**GIVEN, "propensity_logits": torch.zeros(x)}) for x in ((4,), (1,), (1, 2), (4, 1), (3, 2), (2, 4))),
    (ValueError, "propensity_logits must have shape (4,) as the feedback has, or (1,) or () for constants, got (4, 1)",
     {**GIVEN, "feedback": FEEDBACK[:, 0], "propensity_logits": torch.zeros(4, 1)}),
    (ValueError, "preference must have shape (4,), got (4, 1)", {"preference": FEEDBACK[:, :1]}),
    (ValueError, "weight must have shape (4,), got (4, 2)", {"weight": torch.ones(4, 2)}),
    (ValueError, f"stratification[1] must have shape (4, 2){CONSTANTS}(4, 3)",
     {"stratification": (torch.zeros(4), torch.zeros(4, 3))}),
    (ValueError, "polarity has 3 entries for 2 signal(s)", {"polarity": [1, 1, -1]}),
    (ValueError, "reduction must be one of ('mean', 'sum', 'none'), got 'median'", {"reduction": "median"}),
    (ValueError, "normalizer must be finite and above 0, got 0", {"normalizer": 0}),
    (ValueError, "backend must be one of ('triton', 'cpu', 'reference') or None, got 'cuda'", {"backend": "cuda"}),
    (ValueError, "feedback must be 1 (acted), 0 (silent) or -1 (missing); row 0 is not",
     {"feedback": FEEDBACK + 2, "check_values": True}),
]  # fmt: skip


@pytest.mark.parametrize(("error", "message", "changed"), REFUSED)
def test_refused_arguments(error: type[Exception], message: str, changed: dict[str, Any]) -> None:
    irm_fast.linear_implicit_rm_loss(**SOUND)
    pattern = re.escape(message.removesuffix("$")) + "$" * message.endswith("$")
    with pytest.raises(error, match=pattern):
        irm_fast.linear_implicit_rm_loss(**{**SOUND, **changed})
