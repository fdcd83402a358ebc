"""What each trouble of a real log costs, and what is left of it when the log's context is passed and declared.

Four fits of each log of `real_logs`: "naive", any action taken for a label; "plain", nothing passed or declared beside
embeddings and feedback; "passed", users, sessions, times, features and labels passed, misclicks and order declared;
"known", the true propensities, without the rows of bots and without a signal that follows another.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.special import expit

from examples.identification.real_logs import ROWS, RealLog, draw, draw_funnel, draw_one_signal
from irm_fast.diagnostics import diagnose
from irm_fast.diagnostics.metrics import reward_metrics
from irm_fast.embeddings.estimator import EmbeddingRewardModel
from irm_fast.experiments.report import markdown_table

FITS = ("naive", "plain", "passed", "known")
KINDS: dict[str, Callable[..., RealLog]] = {
    "clean": draw,
    "clean, 1% misclicks declared": partial(draw, declared=0.01),
    "5% misclicks": partial(draw, misclick=0.05),
    "30% misclicks": partial(draw, misclick=0.3),
    "activity sd 2, 40 rows a user": partial(draw, activity=2, rows_a_user=40),
    "activity sd 1.5, 10 rows a user": partial(draw, activity=1.5, rows_a_user=10),
    "activity sd 1, 5 rows a user": partial(draw, activity=1, rows_a_user=5),
    "taste sd 1.5, 10 rows a user": partial(draw, taste=1.5, rows_a_user=10),
    "taste sd 1.5, a niche each": partial(draw, taste=1.5, niche=1, rows_a_user=40),
    "5% bots": partial(draw, bots=0.05, rows_a_user=40),
    "redesign half way": partial(draw, redesign=2),
    "fatigue in sessions": partial(draw, fatigue=0.3),
    "half the silent rows lost, later": partial(draw, lost=0.5),
    "a broken button on one platform": partial(draw, broken=True),
    "a funnel of three signals": draw_funnel,
} | {
    f"one signal, {what}, {labels or 'no'} labels": partial(draw_one_signal, kind=kind, labels=labels)
    for kind, what in (
        ("features", "features drive actions"),
        ("preference", "features move preference"),
        ("noisy", "noisy labels"),
    )
    for labels in (0, 30, 100)
}


def measure(kind: str, seed: int, rows: int = ROWS) -> dict[str, dict[str, Any]]:
    """For each of `FITS`: AUROC and mean g on the clean test set, the true mean g, verdicts and failed tests."""
    torch.set_num_threads(1)
    log = KINDS[kind](seed, rows=rows)
    return {name: _judged(_fit(name, log, seed), log, name) for name in FITS}


def _fit(name: str, log: RealLog, seed: int) -> EmbeddingRewardModel:
    settings: dict[str, Any] = {"hidden_layers": (), "random_state": seed}
    arguments: dict[str, Any] = {}
    feedback = log.feedback
    if name == "naive":
        arguments = {"preference": feedback.any(axis=1).astype(int), "propensity": np.full(feedback.shape, 0.5)}
        feedback, settings["propensity_design"] = np.full_like(feedback, -1), "known"
    elif name == "known":
        weight = np.isfinite(log.propensity).all(axis=1).astype(float)
        arguments = {"propensity": np.clip(np.nan_to_num(log.propensity, nan=0.5), 1e-6, 1), "sample_weight": weight}
        settings |= {**log.settings, "propensity_design": "known"}
        if "after" in settings:
            after = list(settings.pop("after"))
            feedback, arguments["propensity"] = (np.delete(of, after, 1) for of in (feedback, arguments["propensity"]))
    elif name == "passed":
        arguments, settings = dict(log.arguments), settings | dict(log.settings)
    if name in ("passed", "known") and log.platform is not None:  # silence of a broken button is no silence
        feedback = feedback.copy()
        feedback[np.array(log.platform) == "phone", 1] = -1
    return EmbeddingRewardModel(**settings).fit(log.X, feedback, **arguments)


def _judged(model: EmbeddingRewardModel, log: RealLog, name: str) -> dict[str, Any]:
    logit, found = model.decision_function(log.test_X), model.diagnosis_
    tests = list(found.tests)
    if name == "plain" and log.platform is not None:
        segments = {"platform": log.platform}
        tests += diagnose(log.feedback, propensity_design="hidden", segments=segments).tests
    span = found.sensitivity.mean_g_range
    return {
        "auroc": reward_metrics(logit, log.test_preference)["auroc"],
        "mean_g": float(expit(logit).mean()),
        "true_mean_g": float(log.test_g.mean()),
        "mean_g_range": None if span is None else list(span),
        "ranking": found.ranking,
        "scale": found.scale,
        "failed": sorted({test.name for test in tests if test.result == "failed"}),
        "context": list(model.context_),
        "designs": list(model.propensity_designs_),
    }


def real_logs(pool: ProcessPoolExecutor, redraws: int, quick: bool) -> dict[str, list[dict[str, Any]]]:
    """Kind and fit, as "kind: fit" -> redraws."""
    rows = 1500 if quick else ROWS
    jobs = {kind: [pool.submit(measure, kind, seed, rows) for seed in range(redraws)] for kind in KINDS}
    results = {kind: [job.result() for job in waiting] for kind, waiting in jobs.items()}
    return {f"{kind}: {name}": [redraw[name] for redraw in found] for kind, found in results.items() for name in FITS}


def kinds_table(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """A Markdown table with a row for each kind: AUROC / mean g of each fit, the verdicts of "passed", what failed."""
    lines = [["log", *FITS, "± AUROC, g", "ranking; scale", "failed tests: plain; passed"]]
    for kind in dict.fromkeys(name.rsplit(": ", 1)[0] for name in found):
        fits = {name: found[f"{kind}: {name}"] for name in FITS}
        passed = fits["passed"]
        errors = [_error([redraw[key] for redraw in passed]) for key in ("auroc", "mean_g")]
        cells = [_auroc_and_mean(fits[name]) for name in FITS]
        verdicts = "; ".join(_counted([redraw[of] for redraw in passed]) for of in ("ranking", "scale"))
        failed = "; ".join(_counted([test for redraw in fits[name] for test in redraw["failed"]]) for name in FITS[1:3])
        lines.append([kind, *cells, " ".join(errors), verdicts, failed])
    return markdown_table(lines)


def _auroc_and_mean(redraws: Sequence[Mapping[str, Any]]) -> str:
    auroc, mean = (np.mean([redraw[key] for redraw in redraws]) for key in ("auroc", "mean_g"))
    return f"{auroc:.3f} / {mean:.2f}"


def _error(values: Sequence[float]) -> str:
    """The standard error of a mean."""
    return f"{np.std(values, ddof=1) / np.sqrt(len(values)):.3f}" if len(values) > 1 else "-"


def _counted(names: Sequence[str]) -> str:
    """Each name with how often it occurs, the most frequent first."""
    return ", ".join(f"{name} {count}" for name, count in Counter(names).most_common()) or "-"


class Sweep(NamedTuple):
    """A trouble of growing size: what `draw` varies, its values, what stays, and how an axis is named."""

    varied: str
    values: Sequence[float]
    rest: Mapping[str, Any]
    axis: str


SWEEPS = {
    "Who: some users act more": Sweep(
        "activity", (0.0, 0.5, 1.0, 1.5, 2.0), {"rows_a_user": 20}, "standard deviation between users (20 rows each)"
    ),
    "When: a redesign half way": Sweep("redesign", (0.5, 1.0, 2.0, 3.0), {}, "what the propensity logits lose"),
    "Where: fatigue in a session": Sweep("fatigue", (0.05, 0.1, 0.2, 0.3), {}, "what they lose with each place of ten"),
}


def sweep(title: str, value: float, name: str, seed: int, rows: int) -> dict[str, Any]:
    """One of `FITS` where one trouble has one size."""
    torch.set_num_threads(1)
    log = draw(seed, rows=rows, **{SWEEPS[title].varied: value}, **SWEEPS[title].rest)
    return _judged(_fit(name, log, seed), log, name)


def context(pool: ProcessPoolExecutor, redraws: int, quick: bool) -> dict[str, Any]:
    """Title of a sweep -> fit -> size of the trouble -> redraws."""
    rows = 1500 if quick else ROWS
    jobs = {
        title: {
            name: {
                str(value): [pool.submit(sweep, title, value, name, seed, rows) for seed in range(redraws)]
                for value in (trouble.values[-2:] if quick else trouble.values)
            }
            for name in FITS[1:3]
        }
        for title, trouble in SWEEPS.items()
    }
    return {
        title: {
            name: {value: [job.result() for job in waiting] for value, waiting in by_value.items()}
            for name, by_value in by_name.items()
        }
        for title, by_name in jobs.items()
    }
