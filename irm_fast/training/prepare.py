"""All checks and decisions before a run begins: rows, signals, propensity designs, the output folder.

Nothing is written here and no model is trained: what can be refused is refused before it costs anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from irm_fast.common.extras import need
from irm_fast.common.warning import warn_caller
from irm_fast.data.log import Log
from irm_fast.data.pairs import Pairs, read_pairs
from irm_fast.data.problems import row_named
from irm_fast.data.read import read_declared
from irm_fast.data.signals import (
    RewardSpec,
    align,
    check_design,
    check_evidence,
    keep_signals,
    signal_notes,
    without_contradictions,
)
from irm_fast.data.telling import tell
from irm_fast.embeddings.given import WEIGHT
from irm_fast.models.adapters import check_four_bits, target_names
from irm_fast.models.backbone import count_tokens, ready_tokenizer, skeleton
from irm_fast.models.processes import from_main_process, is_first, started
from irm_fast.models.rendering import RenderingCheck
from irm_fast.training.arguments import training_arguments
from irm_fast.training.config import RunConfig, TrainConfig
from irm_fast.training.distributed import check_same_log
from irm_fast.training.fingerprint import describe, describe_model
from irm_fast.training.row_tokens import RowTokens, tokens_of
from irm_fast.training.run_folder import check_output, check_same_tokens, date_of_run
from irm_fast.training.specs import check_co_actions, specs_to_try, warn_of_identification


@dataclass(frozen=True)
class Prepared:
    """A log that may be trained on, and the rows to judge by.

    Attributes:
        log: The training part, with the signals that act.
        heldout: The part to evaluate on, with the same signals in the same order, or None.
        specs: What a model is to explain, one for each propensity design to try; never empty.
        dropped: The number of rows that were left out as too long.
        fingerprint: The number of rows and the hash of the whole log, see `fingerprint.describe`, and the `date` that
            chat templates print.
        pairs: The pairs to train on beside the log, or None.
        heldout_pairs: The pairs to evaluate on, or None.
        tokens: The token ids of the rows and pairs; None on embeddings, which stand for them.
    """

    log: Log
    heldout: Log | None
    specs: Sequence[RewardSpec]
    dropped: int
    fingerprint: Mapping[str, Any]
    pairs: Pairs | None = None
    heldout_pairs: Pairs | None = None
    tokens: RowTokens | None = None

    @property
    def parts(self) -> list[Log]:
        """The training part, and the held-out part if there is one."""
        return [self.log] if self.heldout is None else [self.log, self.heldout]

    @property
    def counts_of_pairs(self) -> dict[str, int]:
        """The number of pairs in each part, by its name; empty without pairs."""
        parts = {"training": self.pairs, "held_out": self.heldout_pairs}
        return {name: len(part) for name, part in parts.items() if part is not None}


def read_data(config: RunConfig) -> Log:
    """The log at `config.data`.

    Raises:
        ValueError: No path is given, or the log has problems (`DataError`).
    """
    if not config.data:
        raise ValueError("data: none given; expected the path of a log")
    if config.progress and is_first():
        tell(f"reads {config.data}")
    misclick = bool(config.misclick_rate) or config.contradictions == "drop"
    return read_declared(config.data, replace(config.declared, misclick=misclick))


def prepare_run(log: Log, config: RunConfig, heldout: Log | None = None) -> Prepared:
    """Check a log against the settings and the output folder, and split it into a training and a held-out part.

    Args:
        log: The log, as it was read.
        config: The settings of either program.
        heldout: The log to evaluate on, instead of a part split from `log`.

    Raises:
        ValueError: What is wrong with the log, the settings or the output folder.
        RuntimeError: Several processes read different logs.
    """
    # The log as it was read. First of all: a process that refused its own log would leave the others waiting.
    pairs = read_pairs(config.pairs) if isinstance(config, TrainConfig) and config.pairs else None
    fingerprint = describe(log, heldout, pairs) | {"date": date_of_run(config)}
    if isinstance(config, TrainConfig) or started() > 1:
        check_same_log(fingerprint)
    if isinstance(config, TrainConfig):
        training_arguments(replace(config, fsdp=False), Path(config.output), evaluate=False)  # refused before the work
    check_misclick_names(log, config)
    if isinstance(config, TrainConfig) and config.lora_rank:
        check_adapters(config)
    if isinstance(config, TrainConfig):
        fingerprint |= from_main_process(lambda: describe_model(config.model, fingerprint["date"]))

    # Rows, then signals: a signal may act in rows alone that are too long
    rows = len(log)
    if isinstance(config, TrainConfig) and config.overlong == "drop":
        check_texts(log, heldout, pairs, config)
        log = without_overlong(log, config)
        heldout = None if heldout is None else without_overlong(heldout, config)
        pairs = None if pairs is None else pairs_without_overlong(pairs, config)
    dropped = rows - len(log)
    log, heldout = live_signals(log, heldout)

    # Propensity designs: what a model is to explain by each of them
    specs = specs_to_try(log, config, heldout)
    for spec in specs:
        check_design(spec.design, log)
    if config.contradictions == "drop":
        certain = np.array(specs[0].misclick_rate) == 0
        log = without_contradictions(log, certain)
        heldout = None if heldout is None else without_contradictions(heldout, certain)
    check_evidence(specs[0], log)
    if isinstance(config, TrainConfig):  # a fit on embeddings has its diagnosis soon enough
        warn_of_identification(specs[0], log)

    # The output folder
    check_output(config, fingerprint)

    # The two parts
    if heldout is None and config.validation_fraction:
        log, heldout = log.split(config.validation_fraction, config.seed)
    if heldout is not None:
        heldout = align(heldout, specs[0])
    check_parts(log, heldout)
    if isinstance(config, TrainConfig):  # what the whole log shows the training part may not
        specs = specs_to_try(log, config, heldout)
        check_co_actions(specs[0], log, config)
    training_pairs, heldout_pairs = (None, None) if pairs is None else parts_of_pairs(pairs, log, heldout, config)
    tokens = None
    if isinstance(config, TrainConfig):  # a long pass, after all that is sooner refused
        logs = [log] if heldout is None else [log, heldout]
        tokens = tokens_of(logs, [training_pairs, heldout_pairs][: len(logs)], config, fingerprint["date"])
        fingerprint["tokens"] = tokens.digest
        check_same_tokens(config, tokens.digest)
    return Prepared(log, heldout, specs, dropped, fingerprint, training_pairs, heldout_pairs, tokens)


def parts_of_pairs(pairs: Pairs, log: Log, heldout: Log | None, config: RunConfig) -> tuple[Pairs, Pairs | None]:
    """The pairs to train on, and those to evaluate on if there are any: see `Pairs.split`.

    Args:
        pairs: The pairs.
        log: The training part of the log.
        heldout: The held-out part, or None.
        config: The settings.

    Raises:
        ValueError: All pairs are of conversations of the held-out part.
    """
    if heldout is None:
        return pairs, None
    training, held = pairs.split(log, heldout, config.validation_fraction, config.seed)
    if not len(training):
        raise ValueError(
            f"pairs: all {len(pairs)} are of conversations of the held-out part, so none is left to train on; expected "
            "others, or another --seed"
        )
    if not len(held):
        text = (
            f"pairs: none of {len(pairs)} is held out, as they are few or of conversations that are trained on: no "
            "pairs_accuracy; give some of other prompts, or judge by irm-fast evaluate on others"
        )
        warn_caller(text)
    return training, held if len(held) else None


def check_misclick_names(log: Log, config: RunConfig) -> None:
    """Check that misclick rates are given for signals of the log only.

    Raises:
        ValueError: The log has no such signal.
    """
    rates = config.misclick_rate
    unknown = sorted(rates.keys() - set(log.signals)) if isinstance(rates, Mapping) else ()
    if unknown:
        known = ", ".join(log.signals) or "none"
        raise ValueError(f"misclick_rate: no signal {unknown[0]!r} in the log; expected one of: {known}")


def check_adapters(config: TrainConfig) -> None:
    """Check that adapters may be trained, without loading the weights of the model.

    Raises:
        MissingPackageError: peft is not installed.
        ValueError: The package or device of 4 bits is missing, or no layers have the names that are to be adapted.
    """
    need("peft", "lora_rank")
    if config.load_in_4bit:
        check_four_bits()
    target_names(skeleton(config.model).base_model, config.targets)


def check_texts(log: Log, heldout: Log | None, pairs: Pairs | None, config: TrainConfig) -> None:
    """Check that the model's chat template takes all rows and shows their responses: `RenderingCheck`."""
    tokenizer = ready_tokenizer(config.model)
    for part in (log, heldout):
        if part is not None:
            RenderingCheck(tokenizer).check(part.ids, part.messages)
    if pairs is not None:
        RenderingCheck(tokenizer).check([name for name in pairs.ids for _ in range(2)], pairs.sides)


def live_signals(log: Log, heldout: Log | None) -> tuple[Log, Log | None]:
    """Both logs without the signals that never act in the first one.

    Warnings name these signals, and signals of which one acts only where another does.
    """
    live = [name for k, name in enumerate(log.signals) if (log.feedback[:, k] == 1).any()]
    for note in signal_notes(log):
        warn_caller(note)
    if len(live) == len(log.signals):
        return log, heldout
    if heldout is not None:
        dead = set(log.signals) - set(live)
        heldout = keep_signals(heldout, [name for name in heldout.signals if name not in dead])
    return keep_signals(log, live), heldout


def without_overlong(log: Log, config: TrainConfig) -> Log:
    """The rows of a log that need no truncation.

    Raises:
        ValueError: All rows are too long.
    """
    tokens, limit = count_tokens(config.model, log.messages, config.max_length)
    fits = np.flatnonzero(tokens <= limit)
    if not len(fits):
        raise ValueError(f"overlong: all {len(log)} rows are longer than {limit} tokens; expected a larger max_length")
    return log.subset(fits)


def pairs_without_overlong(pairs: Pairs, config: TrainConfig) -> Pairs:
    """The pairs of which neither side needs truncation; a warning counts the others.

    Raises:
        ValueError: All pairs are too long.
    """
    tokens, limit = count_tokens(config.model, pairs.sides, config.max_length)
    fits = np.all(tokens.reshape(-1, 2) <= limit, axis=1)
    if not fits.any():
        raise ValueError(
            f"overlong: all {len(pairs)} pairs are longer than {limit} tokens; expected a larger max_length"
        )
    if not fits.all():
        warn_caller(f"overlong: {(~fits).sum()} of {len(pairs)} pairs are longer than {limit} tokens and are left out")
    return pairs.subset(fits)


def check_parts(log: Log, heldout: Log | None) -> None:
    """Check that the parts of a log have something to learn from, and something to judge by.

    Raises:
        ValueError: A part has no row of a weight above 0, or one beyond `WEIGHT`; or the training part has no action
            and no preference.
    """
    remedy = "expected some; give more rows, another --seed or another --validation-fraction"
    for name, part in (("training", log), ("held-out", heldout)):
        if part is not None and part.weight is not None and part.weight.max(initial=0) > WEIGHT:
            row = int(part.weight.argmax())
            raise ValueError(
                f"weight: got {part.weight[row]:.3g} in {row_named(part.ids[row], row)} of the {name} part; expected "
                f"at most {WEIGHT:.0e}, as a weight counts as that many rows: divide all weights by their mean"
            )
        if part is not None and not (len(part) if part.weight is None else part.weight.sum() > 0):
            raise ValueError(f"weight: no row of the {name} part ({len(part)} rows) has a weight above 0; {remedy}")
    counts = True if log.weight is None else log.weight > 0
    if not (((log.feedback == 1).any(axis=1) | (log.preference >= 0)) & counts).any():
        raise ValueError(f"feedback: no action and no preference in the training part ({len(log)} rows); {remedy}")
