"""The page of a finished run: what it found, in one HTML file that needs no other file and no network."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, Template, TemplateError
from markupsafe import Markup

from irm_fast.data.log import Log
from irm_fast.data.problems import redacting
from irm_fast.data.read import read_declared
from irm_fast.data.writing.outputs import OutputExistsError, check_folder_of
from irm_fast.data.writing.whole import write_whole
from irm_fast.diagnostics.text import how_far_off
from irm_fast.evaluation.metrics_file import METRICS, read_metrics
from irm_fast.evaluation.scoring import declared_for
from irm_fast.models.record import read_record
from irm_fast.publish import pictures
from irm_fast.publish.answers import Answer, Texts, answers_of, keys_of, texts_in
from irm_fast.publish.charts import COLOURS, Chart
from irm_fast.publish.names import CHARTS, EVIDENCE, PAGE
from irm_fast.publish.png import write_pngs
from irm_fast.publish.svg import as_svg
from irm_fast.publish.verdict import Headline, headline, plainly

_MARK = b'<meta name="generator" content="irm-fast report">'


class Written(NamedTuple):
    """What `write_report` has written.

    Attributes:
        page: The path of the page.
        charts: The folder of the charts as PNG files, or None.
    """

    page: Path
    charts: Path | None


def write_report(
    folder: str | Path, out: str | Path | None = None, log: Log | None = None, *, pngs: bool = False
) -> Written:
    """Write the report of a saved model.

    Args:
        folder: The folder that `irm-fast train` wrote.
        out: The file to write, or to replace; None: `report.html` in the folder.
        log: The log with the rows that were held out, if it is at hand; None: that of the settings is read.
        pngs: Whether to write the charts as PNG files too, into a folder beside the page, where matplotlib is
            installed.

    Returns:
        What was written.

    Raises:
        ValueError: The folder is no saved model, or there is a file in the way that is no report.
        OSError: The file cannot be written.
    """
    folder = Path(folder)
    path = folder / PAGE if out is None else Path(out)
    _check_place(path)
    with _one_line(folder):
        charts = charts_of(folder)
        page = page_of(folder, charts, log)
    write_whole(path, page)
    beside = path.with_name(f"{path.stem}{CHARTS}")
    drawn = write_pngs([chart for section in charts.values() for chart in section], beside) if pngs else 0
    return Written(path, beside if drawn else None)


@contextmanager
def _one_line(folder: Path) -> Iterator[None]:
    """A context in which files of other content than `train` writes are one error, with what to do."""
    try:
        yield
    except (KeyError, TypeError, IndexError, AttributeError, TemplateError) as error:
        what = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"{folder}: irm_fast.json or {EVIDENCE} is not as irm-fast train writes it ({what}); "
            f"irm-fast verify {folder} finds damage, and without {EVIDENCE} there is a page of what is left"
        ) from error


def _check_place(path: Path) -> None:
    """Raise ValueError if there is a file at a path that is no report of ours, or no folder to write into."""
    check_folder_of(path)
    if path.is_dir():
        raise ValueError(f"out: {path} is a folder; expected a file to write, such as {path / PAGE}")
    if path.is_file() and _MARK not in path.read_bytes()[:1000]:
        raise OutputExistsError(f"out: {path} exists and is no report of irm-fast; choose another file")


def page_of(folder: Path, charts: Mapping[str, list[Chart]], log: Log | None = None) -> str:
    """Return the report of a saved model as HTML.

    Args:
        folder: The folder of the model.
        charts: The charts of each section, by its name.
        log: As of `write_report`.
    """
    record, evidence = read_record(folder), read_evidence(folder)
    heldout = (evidence or {}).get("heldout")
    texts = _texts(folder, record, heldout, log)
    lacking = _lacking(record, evidence)
    return _template().render(
        name=folder.resolve().name,
        record=record,
        polarity=dict(zip(record["signals"], record["polarity"], strict=True)),
        training=record.get("training") or {},
        diagnosis=record.get("diagnosis"),
        off=how_far_off(record["diagnosis"]["sensitivity"]) if record.get("diagnosis") else [],
        headline=_headline(record, heldout),
        data=_data(record, evidence),
        versions={"irm-fast": record["version"]} | record.get("versions", {}),
        heldout=heldout,
        sections={name: [_figure(chart) for chart in of_section] for name, of_section in charts.items()},
        answers=_answers(heldout, texts.found),
        redacted=redacting(),
        lacking=[*lacking, *([texts.why] if texts.why else [])],
        style=Markup(_style()),
        when=_when,
        signed=pictures.signed,
        plainly=plainly,
        digits=_digits(heldout),
    )


def read_evidence(folder: Path) -> dict[str, Any] | None:
    """Return what `evidence_of` found as the model was saved, or None of a model of an earlier version.

    Raises:
        ValueError: The file is damaged.
    """
    path = folder / EVIDENCE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{path}: is no JSON ({error}); remove it for a report without it, or train again") from None
    if not isinstance(found, dict) or found.get("format") != 1:
        raise ValueError(f"{path}: expected what irm-fast train wrote, of format 1; remove it for a report without it")
    return found


def _data(record: Mapping[str, Any], evidence: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Return what is known of each part of the log; in earlier versions, some of it stands in the evidence."""
    parts = record.get("data") or []
    more = (evidence or {}).get("data") or [{} for _ in parts]
    return [{**other, **one} for one, other in zip(parts, more, strict=False)]


def _headline(record: Mapping[str, Any], heldout: Mapping[str, Any] | None) -> Headline | None:
    """Return the headline of a record, None without a diagnosis."""
    if not record.get("diagnosis"):
        return None
    gain, error = record.get("gain_over_constant"), record.get("gain_over_constant_error")
    spread = None if heldout is None else heldout["reward"]["sd"]
    return headline(record["diagnosis"], None if gain is None or error is None else (gain, error), spread)


def _digits(heldout: Mapping[str, Any] | None) -> int:
    """Return how many digits behind the point tell rewards apart: two, or more where they hardly differ."""
    spread = heldout["reward"]["sd"] if heldout else 1.0
    return min(8, max(2, 1 - math.floor(math.log10(spread)))) if spread > 0 else 2


def charts_of(folder: Path) -> dict[str, list[Chart]]:
    """Return the charts of each section of the page of a saved model, by its name."""
    record = read_record(folder)
    heldout = (read_evidence(folder) or {}).get("heldout")
    tests = (record.get("diagnosis") or {}).get("tests", [])
    polarity = dict(zip(record["signals"], record["polarity"], strict=True))
    lines = read_metrics(folder / METRICS)
    own = [line for line in lines if line.get("propensity_design") in (record["design"], None)]
    charts: dict[str, list[Chart]] = {
        "learning": list(pictures.learning(own)),
        "groups": list(pictures.groups(own, polarity)),
        "reliability": list(pictures.reliability(tests)),
        "context": list(pictures.context(tests)),
    }
    if heldout is not None:
        charts["reward"] = list(pictures.by_action(heldout["reward"], polarity))
        charts["propensity"] = list(pictures.propensities(heldout["propensity"], polarity))
        charts["exploits"] = list(pictures.exploits(heldout["exploits"]))
    return charts


def _figure(chart: Chart) -> Markup:
    """Return a chart with its title, its legend and its note."""
    legend = Markup("").join(
        Markup('<span><i class="{} c-{}"></i>{}</span>').format(series.kind, series.colour, series.label)
        for series in chart.legend
    )
    return Markup('<figure id="{}"><h3>{}</h3><p class="legend">{}</p>{}<figcaption>{}</figcaption></figure>').format(
        chart.name, chart.title, legend, Markup(as_svg(chart)), chart.note
    )


def _lacking(record: Mapping[str, Any], evidence: Mapping[str, Any] | None) -> list[str]:
    """Say what the page does not show, and why."""
    found = []
    if not record.get("diagnosis"):
        found.append("The verdict: this folder has none; irm-fast diagnose --model gives one.")
    if evidence is None:
        found.append(
            f"What held-out rows show: the folder has no {EVIDENCE}, as of an earlier version of irm-fast, or of a "
            "model that train did not write. Training anew writes it."
        )
    elif evidence.get("heldout") is None:
        found.append(
            "What held-out rows show (rewards by action, propensities, what a policy would exploit, best and worst "
            "answers): nothing was held out. --validation-fraction 0.1 holds out a tenth."
        )
    if "embeddings" in record:
        found.append("A curve of the loss: a fit on embeddings is solved at once and takes no steps to draw.")
    return found


def _texts(folder: Path, record: Mapping[str, Any], heldout: Mapping[str, Any] | None, log: Log | None) -> Texts:
    """Return the texts of the best and worst answers, or why there are none."""
    if heldout is None:
        return Texts({}, "")
    keys = keys_of(heldout)
    if redacting():
        return Texts({}, "The texts of the best and worst answers: --redact keeps them out.")
    again = "; where it lies there, irm-fast report writes the page with them"
    source = (record.get("training") or {}).get("data")
    if log is None:
        if not source:
            return Texts({}, "The texts of the best and worst answers: the run was given its log in memory.")
        try:
            log = read_declared(source, declared_for(folder))
        except (ValueError, OSError) as error:
            first = str(error).splitlines()[0]
            return Texts(
                {}, f"The texts of the best and worst answers: the log {source} cannot be read: {first}{again}."
            )
    found = texts_in(log, keys)
    if len(found) == len(keys):
        return Texts(found, "")
    return Texts(
        found,
        f"The texts of {len(keys) - len(found)} of the {len(keys)} best and worst answers: the log {source} does not "
        "hold them any more; it has changed since the training.",
    )


def _answers(heldout: Mapping[str, Any] | None, texts: Mapping[str, Any]) -> dict[str, list[Answer]]:
    """Return the best and the worst answers, as the page shows them."""
    return {} if heldout is None else {kind: list(answers_of(e, texts)) for kind, e in heldout["answers"].items()}


def _when(seconds: float) -> str:
    """Return a time in seconds since 1970 as a date."""
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d")


def _style() -> str:
    """Return the colours of charts as rules of CSS, for light and for dark ground."""
    return "".join(
        f".c-{name}{{--c:{light}}}@media screen and (prefers-color-scheme:dark){{.c-{name}{{--c:{dark}}}}}"
        for name, (light, dark) in COLOURS.items()
    )


@cache
def _template() -> Template:
    """Return the template of the page; whatever it inserts is escaped."""
    text = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    return Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(text)
