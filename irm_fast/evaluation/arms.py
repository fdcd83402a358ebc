"""A log's arms beside each other, by the reward that a saved model gives to their answers."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from irm_fast.data.features import MARKS, text_marks
from irm_fast.data.groups import NO_NAME, numbered, prompt_numbers, user_or_prompt
from irm_fast.data.log import Log
from irm_fast.data.problems import closest
from irm_fast.data.read import read_answers
from irm_fast.diagnostics.arms import Comparison, compare_arms
from irm_fast.diagnostics.learned import LEARNED
from irm_fast.diagnostics.text import CONDITIONAL, IDENTIFIED, OPEN
from irm_fast.evaluation.scoring import check_predicted, check_texts, declared_for, load, rewards
from irm_fast.models.passes import Passes
from irm_fast.models.record import read_record

_OUTCOMES = re.compile("([^=]*=[^,]*|.+)(?:,|$)")  # a comma before the first "=" belongs to the name


def compare_file(
    data: str | Path,
    model_dir: str | Path,
    by: str,
    *,
    randomised: bool = False,
    outcome: Mapping[str, float] | None = None,
    declared: Mapping[str, Any] | None = None,
    precision: str = "auto",
    passes: Passes | None = None,
) -> Comparison:
    """Compare the arms of a log by the rewards of their answers; arguments beside these as of `compare_arms`.

    Texts, arms, users and weights of the rows count; whether anybody acted does not, and need not be recorded. The
    verdict on the model's reward is said with what is found.

    Args:
        data: The path of the log.
        model_dir: The folder of a saved model. It should not have been trained on these rows.
        by: The segment of the log that tells the arms apart, such as `model` or `version`.
        declared: How the log is to be read, as of `scoring.declared_for`.
        precision: The precision of the language model, as of `scoring.load`.
        passes: How the rows go through the model. None: `Passes()`.

    Raises:
        ValueError: There is no saved model or no readable log, or the log has no such segment; or as `compare_arms`.
    """
    model = load(model_dir, precision=precision)
    log = read_answers(data, declared_for(model_dir, declared))
    arms = _segment(log, by)
    check_texts(model, log.ids, log.messages)
    reward = rewards(model, log.messages, passes or Passes())["reward"]
    check_predicted(log.ids, reward)
    prompts = prompt_numbers(log.messages)
    return compare_arms(
        reward,
        float(model.reward_bias.detach()),
        arms,
        user_or_prompt(log.user_ids, prompts),
        text_marks(log.messages),
        MARKS,
        prompts=prompts,
        userless=None if log.user_ids is None else numbered(log.user_ids) == NO_NAME,
        weight=log.weight,
        by=by,
        randomised=randomised,
        outcome=outcome,
        caution=caution_of(read_record(model_dir)),
    )


def caution_of(record: Mapping[str, Any]) -> str:
    """What the verdict on a model means for what is read off its rewards, a sentence or two; "" of a sound one.

    Args:
        record: The content of `irm_fast.json`.
    """
    found = record.get("diagnosis")
    if not found:
        return "The model has no verdict on its reward: irm-fast diagnose with --model gives one."
    kind, learned = found["kind"], found.get("learned") or record.get("learned")
    if kind == IDENTIFIED and learned in (LEARNED, None):
        return ""
    said = f"By the log that it was trained on, the model's reward is {found['verdict']}."
    if kind == CONDITIONAL:
        return f"{said} P(pleases) is no probability to rely on."
    return f"{said} Arms that draw more actions may come out ahead." if kind == OPEN else said


def parse_outcome(text: str) -> dict[str, float]:
    """Read an outcome of arms, such as "old=0.10,new=0.12", whose names may have commas: "a,b=0.10".

    Raises:
        ValueError: It has another form, or names an arm twice.
    """
    found: dict[str, float] = {}
    for part in _OUTCOMES.findall(text) or [text]:
        name, _, number = part.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not name.strip() or not math.isfinite(value):
            raise ValueError(f"outcome: got {part.strip()!r}; expected an arm and its number, as in old=0.10,new=0.12")
        if name.strip() in found:
            raise ValueError(f"outcome: got {name.strip()!r} twice; expected one number for each arm")
        found[name.strip()] = value
    return found


def _segment(log: Log, by: str) -> Sequence[str | None]:
    """The arms of the rows of a log; ValueError if it has no such segment."""
    if by not in log.segments:
        has, hint = ", ".join(log.segments) or "none", closest(by, tuple(log.segments))
        raise ValueError(
            f"by: the log has no segment {by!r}{hint}; it has {has}; expected a field of each row with its arm: "
            "model, version or platform, or a text in features"
        )
    return log.segments[by]
