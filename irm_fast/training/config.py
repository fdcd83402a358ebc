"""The settings of one training run: a dataclass that YAML files and the command line fill in."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

from irm_fast.data.signals import DESIGN_CHOICES
from irm_fast.models.attention import ATTENTIONS

_CHOICES = {
    "propensity": DESIGN_CHOICES,
    "objective": ("marginal", "stratified"),
    "stratification": ("current", "ema", "frozen"),
    "absent": ("error", "silent", "missing"),
    "precision": ("float32", "bfloat16"),
    "overlong": ("truncate", "drop"),
    "attn": ATTENTIONS,
}
_ONLY_WITH_EMBEDDINGS = ("hidden_layers", "estimator")
_NOT_WITH_EMBEDDINGS = (
    *("objective", "stratification", "ema_decay", "epochs", "batch_size", "token_budget", "gradient_accumulation"),
    *("learning_rate", "head_learning_rate", "weight_decay", "warmup_ratio", "max_length", "overlong", "eval_steps"),
    *("patience", "precision", "attn", "compile", "gradient_checkpointing", "fsdp", "report_to", "resume"),
)
_COUNTS = ("epochs", "batch_size", "token_budget", "gradient_accumulation", "max_length", "eval_steps")
_RATES = ("learning_rate", "head_learning_rate")
_FRACTIONS = ("ema_decay", "warmup_ratio", "validation_fraction")  # in [0, 1)
_AT_LEAST_ZERO = ("weight_decay", "patience", "seed")
_EXPECTED = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    "polarity": "NAME=1 or NAME=-1",
    "misclick_rate": "a number, or NAME=RATE",
    "hidden_layers": "auto, linear, or widths such as 128 or 128,64",
}


def option(default: Any, help: str) -> Any:
    """A field of `TrainConfig` with the line that `irm-fast train --help` prints for it."""
    return field(default=default, metadata={"help": help})


@dataclass
class TrainConfig:
    """Everything that decides a training run.

    Values are converted and checked on construction; numbers may be text, as YAML reads `1e-5` as text.

    Raises:
        ValueError: a field has the wrong type or is out of range: which, what was got, and what is expected.
    """

    model: str = option(MISSING, "Folder or hub id of a decoder language model with its tokenizer.")
    output: str = option(MISSING, "Folder for the checkpoint; must be new or empty.")
    data: str = option("", "The log: JSONL, JSONL.gz or Parquet.")
    embeddings: str = option("", "Train on what irm-fast embed wrote of the log, not on its text; no model needed.")
    hidden_layers: str = option("auto", "With embeddings, layers of the reward: auto, linear, or widths as 128,64.")
    estimator: str = option("auto", "With embeddings, how propensities are estimated; auto by held-out likelihood.")
    propensity: str = option("auto", "Propensity design: auto, constant, hidden, features or known.")
    objective: str = option("marginal", "marginal (a likelihood) or stratified (the published form).")
    stratification: str = option("current", "Posteriors of the stratified form: current, ema or frozen.")
    ema_decay: float = option(0.99, "Decay per optimiser step of the ema stratification model.")
    misclick_rate: float | Mapping[str, float] = option(0.0, "In [0, 1): a number, or NAME=RATE,...")
    polarity: Mapping[str, int] | None = option(None, "Polarity of signals: NAME=1 or NAME=-1, ...")
    absent: str = option("error", "A feedback key that some rows lack: error, silent or missing.")
    epochs: int = option(3, "Passes over the training part of the log.")
    batch_size: int | None = option(None, "Rows per device and forward pass, on average; 16 without a token budget.")
    token_budget: int | None = option(None, "Tokens per device and forward pass: as many rows as they hold.")
    gradient_accumulation: int = option(1, "Forward passes per optimiser step.")
    learning_rate: float = option(2e-5, "Peak learning rate of all that reads or makes hidden states.")
    head_learning_rate: float = option(3e-2, "Peak learning rate of the reward bias and propensity scalars.")
    weight_decay: float = option(0.0, "AdamW weight decay of the backbone's matrices.")
    warmup_ratio: float = option(0.05, "Share of the steps in which the learning rate rises; then it falls.")
    max_length: int = option(1024, "Tokens per row; what is longer is truncated, or dropped.")
    overlong: str = option("truncate", "Longer rows: truncate (they lose their beginning) or drop.")
    validation_fraction: float = option(0.1, "Share of the log held out for evaluation; 0 for none.")
    eval_steps: int | None = option(None, "Evaluate and checkpoint every so many steps, not epochs.")
    patience: int = option(2, "Stop after so many evaluations without a better held-out likelihood; 0 never.")
    precision: str = option("float32", "float32, or bfloat16 (mixed: weights and heads stay float32).")
    attn: str = option("auto", f"Attention: {', '.join(ATTENTIONS)}; auto: the fastest there is.")
    compile: bool = option(False, "Run the language model through torch.compile.")
    fsdp: bool = option(False, "Shard weights, gradients and optimiser over the processes (FSDP2).")
    gradient_checkpointing: bool = option(False, "Recompute activations in the backward pass to save memory.")
    seed: int = option(0, "Seed of the split, the new weights and the order of rows.")
    report_to: str = option("none", "Tracker known to transformers: none, tensorboard, wandb, ...")
    progress: bool = option(True, "Show transformers' progress bar.")
    resume: bool = option(False, "Go on with the interrupted run in the output folder.")
    overwrite: bool = option(False, "Delete what the earlier run wrote to the output folder, and start anew.")

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(TrainConfig).items():
            setattr(self, name, _convert(name, getattr(self, name), kind))
        self._check()

    @property
    def rows_per_pass(self) -> int | None:
        """`batch_size`, or its default: 16, and no limit beside a token budget."""
        return 16 if self.batch_size is None and self.token_budget is None else self.batch_size

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], source: str = "config") -> TrainConfig:
        """A config from a mapping; `source` names it in errors.

        Raises:
            ValueError: an unknown key (with the closest known one), a missing required key, or a bad value.
        """
        if values.get("embeddings"):  # their file names the model
            values = {"model": "", **values}
        known = [f.name for f in fields(cls)]
        for key in values:
            if key not in known:
                close = difflib.get_close_matches(str(key), known, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"known settings: {', '.join(known)}"
                raise ValueError(f"{source}: unknown setting {key!r}; {hint}")
        missing = [f.name for f in fields(cls) if f.default is MISSING and f.name not in values]
        if missing:
            raise ValueError(f"{source}: no value for {' and '.join(missing)}; set it here or in a YAML file")
        return cls(**values)

    @classmethod
    def load(cls, path: str | Path | None, **overrides: Any) -> TrainConfig:
        """Read a YAML file, if any, and let `overrides` that are not None replace what it says.

        Raises:
            ValueError: the file is not a YAML mapping, or as `from_mapping`.
            OSError: the file cannot be read.
        """
        given = {key: value for key, value in overrides.items() if value is not None}
        if path is None:
            return cls.from_mapping(given, source="command line")
        return cls.from_mapping({**_read_yaml(path), **given}, source=str(path))

    def save(self, path: Path) -> None:
        """Write the settings as YAML that `load` reads."""
        import yaml

        path.write_text(yaml.safe_dump(asdict(self), sort_keys=False), encoding="utf-8")

    def _check(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}: got {getattr(self, name)!r}; expected one of {', '.join(choices)}")
        for names, fits, expected in (
            ((*_COUNTS, *_RATES), lambda value: value is None or value > 0, "a number above 0"),
            (_FRACTIONS, lambda value: 0 <= value < 1, "a number in [0, 1)"),
            (_AT_LEAST_ZERO, lambda value: value >= 0, "0 or more"),
        ):
            for name in names:
                if not fits(getattr(self, name)):
                    raise ValueError(f"{name}: got {getattr(self, name)}; expected {expected}")
        rates = self.misclick_rate if isinstance(self.misclick_rate, Mapping) else {"": self.misclick_rate}
        if not all(0 <= rate < 1 for rate in rates.values()):
            raise ValueError(f"misclick_rate: got {self.misclick_rate}; expected numbers in [0, 1)")
        if self.polarity and not set(self.polarity.values()) <= {1, -1}:
            raise ValueError(f"polarity: got {self.polarity}; expected 1 or -1 for every signal")
        if self.stratification != "current" and self.objective != "stratified":
            raise ValueError(
                f"stratification: {self.stratification!r} has no effect on the marginal objective; "
                "set objective to 'stratified' as well"
            )
        if self.resume and self.overwrite:
            raise ValueError("resume and overwrite: both are set; choose one")
        where, without = ("with", _NOT_WITH_EMBEDDINGS) if self.embeddings else ("without", _ONLY_WITH_EMBEDDINGS)
        for setting in fields(self):
            value = getattr(self, setting.name)
            if setting.name in without and value != setting.default:
                raise ValueError(f"{setting.name}: got {value!r}, which has no effect {where} embeddings; leave it out")


def _read_yaml(path: str | Path) -> dict[str, Any]:
    import yaml

    try:
        text = Path(path).read_text(encoding="utf-8")
        values = yaml.safe_load(text)
        twice = _given_twice(yaml.compose(text, Loader=yaml.SafeLoader))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not readable as YAML: {error}") from error
    if twice is not None:
        raise ValueError(f"{path}:{twice.start_mark.line + 1}: {twice.value}: given a second time; expected it once")
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"{path}: got a {type(values).__name__}; expected lines of 'setting: value'")
    return values


def _given_twice(node: Any) -> Any:
    """The first YAML key that its mapping, or one within, holds already (YAML's loader lets the last win), or None."""
    if getattr(node, "id", None) != "mapping":
        return None
    seen = set()
    for key, value in node.value:
        if key.id == "scalar" and key.value in seen:
            return key
        seen.add(str(key.value))
        if (inner := _given_twice(value)) is not None:
            return inner
    return None


def _convert(name: str, value: Any, kind: Any) -> Any:
    """`value` as the type that the field declares; YAML and the command line may bring text."""
    kinds = get_args(kind) or (kind,)
    if value is None and type(None) in kinds:
        return None
    try:
        if name == "polarity":
            return _by_name(value, int)
        if name == "misclick_rate":
            named = isinstance(value, Mapping) or (isinstance(value, str) and "=" in value)
            return _by_name(value, float) if named else _number(value, float)
        if name == "hidden_layers":
            return _widths(value)
        if float in kinds or int in kinds:
            return _number(value, float if float in kinds else int)
        if kind is str and isinstance(value, (str, Path)):
            return str(value)
        if isinstance(value, kind):
            return value
        raise ValueError
    except (ValueError, TypeError, AttributeError):
        expected = _EXPECTED.get(name) or _EXPECTED[kinds[0]]
        raise ValueError(f"{name}: got {value!r}; expected {expected}") from None


def _widths(value: Any) -> str:
    """auto, linear, or widths: 128, "128,64" or [128, 64], as text."""
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    if text not in ("auto", "linear") and not all(part.strip().isdecimal() and int(part) for part in text.split(",")):
        raise ValueError
    return text


def _by_name(value: Any, kind: type) -> dict[str, Any]:
    """A mapping, or its text form NAME=VALUE,NAME=VALUE."""
    if isinstance(value, str):
        value = dict(part.split("=", 1) for part in value.split(","))
    return {str(name).strip(): _number(entry, kind) for name, entry in value.items()}


def _number(value: Any, kind: type) -> Any:
    if isinstance(value, bool) or (kind is int and isinstance(value, float) and not value.is_integer()):
        raise ValueError
    return kind(value)
