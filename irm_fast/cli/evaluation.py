"""Commands that judge a log or a model, and that use a model: `evaluate`, `diagnose`, `compare`, ..."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from irm_fast.cli.answers import Answer, Table, path_of
from irm_fast.cli.help import example
from irm_fast.cli.options import (
    Base,
    BatchSize,
    Data,
    Model,
    PrecisionOption,
    Progress,
    Resume,
    TokenBudget,
    with_log_settings,
    with_text_settings,
)
from irm_fast.data.signals import DesignChoice
from irm_fast.training.config import log_settings


def declared(settings: dict[str, Any]) -> dict[str, Any]:
    """What the options declare of a log, checked; None where they do not say."""
    checked = log_settings(None, settings)
    return {name: None if value is None else getattr(checked, name) for name, value in settings.items()}


@example(
    "irm-fast evaluate --model reward_model --data rated.jsonl",
    "irm-fast evaluate --model reward_model --data log.test.jsonl --json",
)
@with_log_settings
def evaluate(
    model: Model,
    data: Data,
    batch_size: BatchSize = None,
    token_budget: TokenBudget = None,
    precision: PrecisionOption = "auto",
    base: Base = None,
    progress: Progress = True,
    **settings: Any,
) -> Answer | None:
    """Measure a model: on clean ratings or pairs, or on a log by likelihood and calibration.

    On a log copy_lost_hiding_0.1, say, is the share of the copies that would be lost if the tenth of the responses with
    the lowest rewards were hidden.
    """
    from irm_fast.evaluation.evaluation import evaluate as measure
    from irm_fast.models.processes import is_first, launched

    how = {"batch_size": batch_size, "token_budget": token_budget, "precision": precision, "progress": progress}
    told = declared(settings)
    with launched() as distributed:
        metrics = measure(model, data, base=base, declared=told, distributed=distributed, **how)  # type: ignore[arg-type]
    return Answer(metrics, [_table_of(metrics)]) if is_first() else None


def _table_of(metrics: Mapping[str, float]) -> Table:
    """Metrics as a table, those of the ends of intervals beside what they are of."""
    ends = {f"{name}_{end}" for name in metrics for end in ("low", "high")} & metrics.keys()
    rows = []
    for name in (name for name in metrics if name not in ends):
        value = f"{metrics[name]:{'.4f' if isinstance(metrics[name], float) else 'd'}}"
        if f"{name}_low" in ends:
            value += f"  90% interval {metrics[f'{name}_low']:.4f} to {metrics[f'{name}_high']:.4f}"
        rows.append((name, value))
    return Table(("metric", "value"), rows)


@example(
    "irm-fast diagnose --data log.jsonl",
    "irm-fast diagnose --data log.test.jsonl --model reward_model",
)
@with_log_settings
def diagnose(
    data: Data,
    model: Annotated[Path | None, typer.Option(help="A folder that irm-fast train wrote on another log.")] = None,
    propensity_design: Annotated[DesignChoice, typer.Option(help="Without a model: the design to judge.")] = "auto",
    labels_ignorable: Annotated[
        bool, typer.Option("--labels-ignorable", help="Which rows have a preference does not depend on it.")
    ] = False,
    batch_size: BatchSize = None,
    token_budget: TokenBudget = None,
    precision: PrecisionOption = "auto",
    base: Base = None,
    **settings: Any,
) -> Answer | None:
    """Is the reward identified? What is assumed, tested, and uncertain. Exit code 1 if the log contradicts it.

    With a model, the log should be one that it was not trained on; without, only what the log alone shows is tested.
    """
    from irm_fast.evaluation.log_diagnosis import diagnose_file
    from irm_fast.models.processes import is_first, launched

    told = declared(settings)
    with launched() as distributed:
        found = diagnose_file(
            data,
            model,
            propensity_design=propensity_design,
            declared=told,
            labels_ignorable=labels_ignorable,
            batch_size=batch_size,
            token_budget=token_budget,
            precision=precision,
            base=base,
            distributed=distributed,
            progress=True,
        )
    return Answer(found.to_dict(), [str(found)], code=found.kind == "contradicted") if is_first() else None


@example("irm-fast compare --data new_log.jsonl --model reward_model --by version")
@with_log_settings
def compare(
    data: Data,
    model: Model,
    by: Annotated[
        str, typer.Option(help="The field that tells the arms apart: model, version, arm, platform, a feature.")
    ],
    randomised: Annotated[bool, typer.Option("--randomised", help="Arms were assigned to users at random.")] = False,
    outcome: Annotated[
        str | None, typer.Option(help="What an A/B test found, to rank beside: old=0.10,new=0.12.")
    ] = None,
    batch_size: BatchSize = None,
    token_budget: TokenBudget = None,
    precision: PrecisionOption = "auto",
    progress: Progress = True,
    **settings: Any,
) -> Answer | None:
    """Compare the arms of a log (models, versions, sides of a test) by the reward of their answers.

    Prints the mean reward of each arm with intervals over users, and which marks of answers a policy that is
    optimised against the reward would move. The log should not be the one that the model was trained on.
    """
    from irm_fast.evaluation.arms import compare_file, parse_outcome
    from irm_fast.models.passes import Passes
    from irm_fast.models.processes import is_first, launched

    told, outcomes = declared(settings), None if outcome is None else parse_outcome(outcome)
    how = {"randomised": randomised, "outcome": outcomes, "declared": told, "precision": precision}
    with launched() as distributed:
        passes = Passes(batch_size, token_budget, distributed, progress)
        found = compare_file(data, model, by, passes=passes, **how)  # type: ignore[arg-type]
    return Answer(found.to_dict(), [str(found)]) if is_first() else None


@example(
    'irm-fast mask "share where platform=android" --data log.jsonl \\',
    "    --out masked.jsonl",
)
@with_log_settings
def mask(
    what: Annotated[
        list[str],
        typer.Argument(metavar="WHAT", help='Signals and where, as diagnose: "share where platform=android".'),
    ],
    data: Data,
    out: Annotated[Path, typer.Option(help="The log to write, of the same kind of file.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
    **settings: Any,
) -> Answer:
    """Write a log with null for signals in a part of it, where silence is a broken button, as diagnose advises."""
    from irm_fast.data.reading.sources import check_not_input
    from irm_fast.data.writing.outputs import check_file, check_folder_of
    from irm_fast.evaluation.masking import mask_log

    check_not_input(out, data)
    check_folder_of(out)
    check_file(out, overwrite=overwrite)
    found = mask_log(Path(data), out, what, declared=log_settings(None, settings).declared)
    said = [f"wrote {out}: {found.rows - found.left_out} of {found.rows} rows"]
    for phrase, silent in found.silent.items():
        said.append(f"  {phrase}: {silent} entries of 0 and {found.acted[phrase]} of 1 are null")
    if found.left_out:
        said.append(f"  {found.left_out} rows record nothing any more and were left out")
    return Answer({"wrote": path_of(out), **found._asdict()}, said)


@example("irm-fast score --model reward_model --data answers.jsonl --out rewards.jsonl")
@with_text_settings
def score(
    model: Model,
    data: Data,
    out: Annotated[Path, typer.Option(help="JSONL to write or replace: id and reward (null if not finite).")],
    batch_size: BatchSize = None,
    token_budget: TokenBudget = None,
    precision: PrecisionOption = "auto",
    lower: Annotated[
        float | None,
        typer.Option(help="On embeddings: also reward_lower, below which the true reward lies with this probability."),
    ] = None,
    resume: Resume = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start anew where a run was interrupted.")] = False,
    progress: Progress = True,
    **settings: Any,
) -> Answer | None:
    """Write the reward of every response; no feedback or rating is needed. Exit code 1 if one is not finite."""
    from irm_fast.data.reading.sources import check_not_input

    check_not_input(out, data)
    from irm_fast.evaluation.rewards_file import score_file
    from irm_fast.models.passes import Passes
    from irm_fast.models.processes import is_first, launched

    how = {"precision": precision, "lower": lower, "resume": resume, "overwrite": overwrite}
    told = declared(settings)
    with launched() as distributed:
        passes = Passes(batch_size, token_budget, distributed, progress)
        written = score_file(model, data, out, passes=passes, declared=told, **how)  # type: ignore[arg-type]
    if not is_first():
        return None
    return Answer(
        {"wrote": path_of(out), "rows": written.rows, "not_finite": written.not_finite},
        [f"wrote {out}: {written.rows} rewards"],
        code=bool(written.not_finite),
        errors=_not_finite(written.rows, written.not_finite, written.first) if written.not_finite else (),
        aside=out.exists() and not out.is_file(),  # the rewards may be on /dev/stdout
    )


def _not_finite(rows: int, count: int, first: Sequence[tuple[int, str]]) -> list[str]:
    """What is said of rewards that are not finite."""
    from irm_fast.data.problems import row_named

    some = ", ".join(row_named(name, row) for row, name in first)
    more = f" and {count - len(first)} more" * (count > len(first))
    look = "look at these rows, and at the model: irm-fast verify"
    return [f"{count} of {rows} rewards are not finite, and null in the file: {some}{more}; {look}"]


@example(
    "irm-fast label --next 100 --data log.jsonl --model reward_model \\",
    "    --out to_rate.jsonl",
    "irm-fast label --merge to_rate.jsonl --data log.jsonl --out rated.jsonl",
)
@with_log_settings
def label(
    data: Data,
    out: Annotated[Path, typer.Option(help="To write: NAME.jsonl of rows to rate; or the log with their ratings.")],
    count: Annotated[int | None, typer.Option("--next", min=1, help="How many rows to have rated.")] = None,
    merge: Annotated[Path | None, typer.Option(help="Such rows, rated: write the log with their ratings.")] = None,
    model: Annotated[Path | None, typer.Option(help="With --next: a folder that irm-fast train wrote.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed draws the same rows.")] = 0,
    batch_size: BatchSize = None,
    token_budget: TokenBudget = None,
    precision: PrecisionOption = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file, labels and all.")] = False,
    **settings: Any,
) -> Answer | None:
    """Draw rows of a log to have rated (--next 100 --model DIR), and merge the ratings into the log (--merge RATED).

    Rows are drawn with known probabilities, where a label says most. With one signal that is where its splits into
    preference and propensity disagree, with more where the reward is least sure. Rows that have a preference are left
    out.
    """
    from irm_fast.data.reading.sources import check_not_input
    from irm_fast.data.writing.outputs import check_file, check_folder_of, check_suffix

    check_not_input(out, data)
    check_folder_of(out)
    if merge is not None:
        if count is not None or model is not None:
            raise ValueError("merge: got --next or --model too, which have no effect with --merge; leave them out")
        check_not_input(out, merge)
        check_file(out, overwrite=overwrite)
        return _merge_labels(merge, Path(data), out)
    if count is None:
        raise ValueError("label: expected --next 100 to draw rows, or --merge RATED once they are rated; got neither")
    if model is None:
        raise ValueError("model: none given; expected --model DIR, a folder that irm-fast train wrote")
    check_suffix(out, ".jsonl")
    passes = {"batch_size": batch_size, "token_budget": token_budget}
    return _draw_labels(count, data, model, out, seed, precision, passes, declared(settings), overwrite=overwrite)


def _draw_labels(
    count: int,
    data: str,
    model: Path,
    out: Path,
    seed: int,
    precision: str,
    passes: dict[str, int | None],
    settings: dict[str, Any],
    *,
    overwrite: bool,
) -> Answer | None:
    """The answer of `label --next`."""
    from irm_fast.data.read import read_declared
    from irm_fast.data.writing.outputs import check_file
    from irm_fast.evaluation.labelling import rows_to_label, write_labels
    from irm_fast.evaluation.scoring import declared_for, load
    from irm_fast.models.processes import from_main_process, is_first, launched

    with launched() as distributed:
        from_main_process(lambda: check_file(out, overwrite=overwrite), distributed=distributed)
        log, trained = read_declared(data, declared_for(model, settings)), load(model, precision=precision)
        rows, probability = rows_to_label(trained, log, count, seed, distributed=distributed, progress=True, **passes)  # type: ignore[arg-type]
        from_main_process(lambda: write_labels(out, log, rows, probability), distributed=distributed)
    if not is_first():
        return None
    return Answer(
        {"wrote": path_of(out), "rows": count, "of": len(log)},
        [
            f"wrote {out}: {count} of {len(log)} rows",
            "  Fill in preference, 1 where the response pleases and 0 where it does not; then irm-fast label --merge\n"
            f"  {out} --data {data} --out NEWLOG, and irm-fast train on NEWLOG with --labels-ignorable.",
        ],
    )


def _merge_labels(rated: Path, data: Path, out: Path) -> Answer:
    """The answer of `label --merge`."""
    from irm_fast.data.merging import merge_ratings

    found = merge_ratings(rated, data, out)
    said = [f"wrote {out}: {found.merged} ratings merged into {found.rows} rows"]
    if found.had:
        said.append(f"  {found.had} ratings were in the log already")
    if found.unrated:
        said.append(f"  {found.unrated} rows of {rated} have no preference; they are as they were")
    if found.without_chance:
        said.append(f"  {found.without_chance} have no label_probability: they count as drawn at random")
    said.append(
        f"  irm-fast train --data {out} learns from them; --labels-ignorable, if nothing but the draw chose the rows.\n"
        "  Embeddings of the log fit: its texts are the same."
    )
    return Answer({"wrote": path_of(out), **found._asdict()}, said)
