"""The settings of a training run: dataclasses that Python, YAML files and the command line fill in alike.

A setting is one field: its type, its default, its bounds, and the line of help that the command line prints. Nothing
else lists it; `setting_values` knows how to read one. Importing this module takes no torch, so that help comes at once.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from irm_fast.common.extras import need
from irm_fast.common.headings import ADAPTERS, MAIN, ON_EMBEDDINGS, PRINTED, REWARD, SAVES, SPEED, STEPS
from irm_fast.data.signals import DesignChoice, Estimator
from irm_fast.data.writing.outputs import check_choice
from irm_fast.data.writing.whole import write_whole
from irm_fast.evaluation.metrics_file import RENAMED
from irm_fast.losses import SCALAR_LEARNING_RATE
from irm_fast.losses.rates import EXPECTED, are_rates
from irm_fast.models import Attention, Precision, Recompute
from irm_fast.training.log_settings import MISSING as MISSING
from irm_fast.training.log_settings import LogSettings, option, with_help
from irm_fast.training.setting_values import read_yaml

Config = TypeVar("Config", bound="RunConfig")
COMMAND_LINE = "command line"  # the source of settings that no file holds
NOT_KEPT = ("resume", "overwrite", "progress")  # no settings of the result: a file of settings does not hold them

ACCELERATE_FSDP = "ACCELERATE_USE_FSDP"  # the environment variable by which accelerate's configuration asks for FSDP


@dataclass(kw_only=True)
class RunConfig(LogSettings):
    """The settings that both programs share: training a language model, and fitting a reward on embeddings.

    Values are converted and checked on construction; numbers may be text, as YAML reads `1e-5` as text.

    Raises:
        ValueError: A field has the wrong type or is out of range. The message says which, what it got, and what is
            expected.
    """

    program: ClassVar[str]  # for messages

    output: str = option(MISSING, "Folder for the checkpoint; must be new or empty.", group=MAIN)
    data: str = option("", "The log: a file, a folder of parts, a pattern, or - for standard input.", group=MAIN)
    propensity_design: DesignChoice = option("auto", "How propensities depend on the response; see docs.", group=REWARD)
    estimator: Estimator = option(
        "auto", "two-step fits propensities first, joint with the reward; see docs.", group=REWARD
    )
    misclick_rate: float | Mapping[str, float] = option(0.0, "In [0, 1): a number, or NAME=RATE,...", group=REWARD)
    contradictions: Literal["error", "drop"] = option(
        "error", "Rows that contradict themselves, such as a copy with the preference 0.", group=REWARD
    )
    labels_ignorable: bool = option(False, "Which rows have a preference does not depend on it.", group=REWARD)
    validation_fraction: float = option(
        0.1, "Share of the log held out for evaluation; 0 for none.", at_least=0, below=1, group=SAVES
    )
    seed: int = option(0, "Seed of the split, the new weights and the order of rows.", at_least=0, group=STEPS)
    progress: bool = option(True, "Say how far the run is: a bar on a terminal, else some lines.", group=PRINTED)
    resume: bool = option(
        False, "Go on with the interrupted run in the output folder; a fit on embeddings is redone.", group=MAIN
    )
    overwrite: bool = option(
        False, "Delete what the earlier run wrote to the output folder, and start anew.", group=MAIN
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(resume=self.resume, overwrite=self.overwrite)
        rates = self.misclick_rate if isinstance(self.misclick_rate, Mapping) else {"": self.misclick_rate}
        if not are_rates(rates.values()):
            raise ValueError(f"misclick_rate: got {self.misclick_rate}; expected {EXPECTED}")

    @classmethod
    def from_mapping(cls: type[Config], values: Mapping[str, Any], source: str = "config") -> Config:
        """A config from a mapping of settings.

        Args:
            values: The settings by name. One that belongs to the other program may stand there at its default.
            source: Where the settings come from, for errors.

        Raises:
            ValueError: A key is unknown (the message has the closest known one) or belongs to the other program, a
                required key is missing, or a value is bad.
        """
        known = {f.name: f for f in fields(cls)}
        others = {f.name: f.default for kind in PROGRAMS if kind is not cls for f in fields(kind)}
        given = {}
        for key, value in values.items():
            if key in known:
                given[key] = value
            elif key not in others:
                close = difflib.get_close_matches(str(key), known, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"known settings: {', '.join(known)}"
                raise ValueError(f"{source}: unknown setting {key!r}; {hint}")
            elif value != ("" if others[key] is MISSING else others[key]):
                raise ValueError(f"{key}: got {value!r}, which has no effect {cls.program}; leave it out")
        missing = [name for name, f in known.items() if f.default is MISSING and name not in given]
        if missing:
            if source == COMMAND_LINE:
                options = " and ".join(f"--{name.replace('_', '-')}" for name in missing)
                raise ValueError(f"no value for {options}; give it, or a YAML file of settings by --config")
            raise ValueError(f"{source}: no value for {' and '.join(missing)}; set it here or in a YAML file")
        return cls(**given)

    @classmethod
    def load(cls: type[Config], path: str | Path | None, **overrides: Any) -> Config:
        """A config from a YAML file and from settings that replace those of the file.

        Args:
            path: The file, or None.
            overrides: Settings by name; None leaves what the file says.

        Raises:
            ValueError: The file is no mapping in YAML or asks for `resume` or `overwrite`, or as `from_mapping`.
            OSError: The file cannot be read.
        """
        values, source = _merged(path, overrides)
        return cls.from_mapping(values, source)

    def to_dict(self) -> dict[str, Any]:
        """The settings of the result: without those that only say how to go about it, such as `overwrite`."""
        return {name: value for name, value in asdict(self).items() if name not in NOT_KEPT}

    def save(self, path: Path) -> None:
        """Write the settings of the result as YAML that `load` reads."""
        need("yaml", f"{path}: YAML")
        import yaml

        text = yaml.safe_dump(self.to_dict(), sort_keys=False)
        about = '# Settings, to be given again by --config; irm_fast.json says under "used" what they stood for\n'
        write_whole(path, about + text)


@with_help
@dataclass(kw_only=True)
class TrainConfig(RunConfig):
    """The settings of training a language model on a log.

    Raises:
        ValueError: As `RunConfig`, or settings contradict each other.

    Examples:
        >>> from irm_fast import TrainConfig
        >>> config = TrainConfig(model="MODEL", data="log.jsonl", output="reward_model", epochs="2")
        >>> config.epochs, config.propensity_design
        (2, 'auto')
    """

    program: ClassVar[str] = "without embeddings"

    model: str = option(MISSING, "Folder or hub id of a decoder language model with its tokenizer.", group=MAIN)
    propensity_rows: int = option(
        100_000, "Rows, at most, to which propensities are fitted before the training.", above=0, group=REWARD
    )
    pairs: str = option("", "Pairs to train on, too, chosen and rejected: JSONL, JSONL.gz or Parquet.", group=REWARD)
    pairs_weight: float | None = option(
        None,
        "Weight of the mean loss of a step's pairs beside that of its rows; else a pair counts as a row.",
        above=0,
        at_most=1e9,
        group=REWARD,
    )
    objective: Literal["marginal", "stratified"] = option(
        "marginal", "A likelihood, or the published form.", group=REWARD
    )
    stratification: Literal["current", "ema", "frozen"] = option(
        "current", "Posteriors of the stratified form.", group=REWARD
    )
    ema_decay: float = option(
        0.99, "Decay per optimiser step of the ema stratification model.", at_least=0, below=1, group=REWARD
    )
    epochs: int = option(3, "Passes over the training part of the log.", above=0, group=STEPS)
    batch_size: int | None = option(
        None, "Rows per device and forward pass, on average; 16 without a token budget.", above=0, group=STEPS
    )
    token_budget: int | None = option(
        None, "Tokens per device and forward pass: as many rows as they hold.", above=0, group=STEPS
    )
    gradient_accumulation: int = option(1, "Forward passes per optimiser step.", above=0, group=STEPS)
    learning_rate: float | None = option(
        None,
        "Peak learning rate of all that reads or makes hidden states, 100 at most: 2e-5, with adapters 2e-4.",
        above=0,
        at_most=100,
        group=STEPS,
    )
    head_learning_rate: float = option(
        SCALAR_LEARNING_RATE,
        "Peak learning rate of the reward bias and propensity scalars, 100 at most.",
        above=0,
        at_most=100,
        group=STEPS,
    )
    weight_decay: float = option(
        0.0, "AdamW weight decay of the backbone's matrices, 1000 at most.", at_least=0, at_most=1000, group=STEPS
    )
    warmup_ratio: float = option(
        0.05, "Share of the steps in which the learning rate rises; then it falls.", at_least=0, below=1, group=STEPS
    )
    max_length: int = option(1024, "Tokens per row; what is longer is truncated, or dropped.", above=0, group=STEPS)
    overlong: Literal["truncate", "drop"] = option(
        "truncate", "Longer rows lose their oldest text, or are left out.", group=STEPS
    )
    eval_steps: int | None = option(
        None, "Evaluate and checkpoint every so many steps, not epochs.", above=0, group=SAVES
    )
    save_steps: int | None = option(
        None, "Steps between checkpoints, beside those of evaluations.", above=0, group=SAVES
    )
    save_minutes: float = option(
        10.0, "Minutes between checkpoints at most; 0 saves at evaluations alone.", at_least=0, group=SAVES
    )
    patience: int = option(
        2, "Stop after so many evaluations without a better held-out likelihood; 0 never.", at_least=0, group=SAVES
    )
    precision: Precision = option(
        "auto",
        "bfloat16 computes with rounded copies of float32 weights, and heads in float32; auto: on GPUs.",
        group=SPEED,
    )
    attn: Attention = option("auto", "Attention; auto is the fastest that is available.", group=SPEED)
    compile: bool | None = option(None, "Run each layer through torch.compile; auto: on GPUs.", group=SPEED)
    liger: bool | None = option(
        None, "Liger's kernels, of the extra liger; auto: on GPUs that compile no layers.", group=SPEED
    )
    lora_rank: int | None = option(
        None,
        "Rank of low-rank adapters (LoRA) on a frozen model; without it the whole model is trained.",
        above=0,
        group=ADAPTERS,
    )
    lora_alpha: float = option(
        32.0, "Adapters are multiplied by this over their rank.", above=0, at_most=1e6, group=ADAPTERS
    )
    lora_targets: str | None = option(
        None, "Linear layers with adapters, comma separated; all by default.", group=ADAPTERS
    )
    lora_keep_adapter: bool = option(False, "Write the adapter too, beside the merged model.", group=ADAPTERS)
    load_in_4bit: bool = option(False, "Adapters on a model of 4 bits a weight (bitsandbytes, CUDA).", group=ADAPTERS)
    fsdp: bool = option(False, "Shard weights, gradients and optimiser over the processes (FSDP2).", group=SPEED)
    gradient_checkpointing: Recompute = option(
        "none",
        "Activations to compute again in the backward pass: full saves most memory, selective most time.",
        group=SPEED,
    )
    optim: str | None = option(
        None, "Optimiser by its name in transformers: adamw_8bit, paged_adamw_8bit, adafactor, ...", group=STEPS
    )
    trainer: Mapping[str, Any] | None = option(
        None,
        "KEY=VALUE, any other of transformers' TrainingArguments, such as max_grad_norm=0.5; may be repeated.",
        group=STEPS,
    )
    on_nonfinite: Literal["stop", "skip"] = option(
        "stop",
        "A step whose loss or gradient is NaN or inf changes nothing: end the run, or go on without it.",
        group=STEPS,
    )
    max_skipped_steps: int = option(
        10, "Steps that skip leaves out, at most, before the run ends.", at_least=0, group=STEPS
    )
    report_to: str = option("none", "Tracker known to transformers: none, tensorboard, wandb, ...", group=SAVES)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_stratification()
        if self.estimator == "two-step" and self.propensity_design == "known":
            raise ValueError("estimator: 'two-step' fits propensities, and those of the design 'known' are in the log")
        if self.pairs_weight is not None and not self.pairs:
            raise ValueError(
                f"pairs_weight: {self.pairs_weight:g} has no effect without pairs; give pairs, or leave it out"
            )
        self._check_lora()
        if self.peak_learning_rate * self.weight_decay > 1:
            raise ValueError(
                f"weight_decay: got {self.weight_decay:g}, which times learning_rate {self.peak_learning_rate:g} is "
                "more than all of a weight in a step; expected a product below 1"
            )
        if self.compile and self.liger:
            raise ValueError("liger: got true beside compile; expected one of them: both fuse the same operations")

    def _check_stratification(self) -> None:
        """Raise ValueError for a stratification model that has no effect, or cannot be kept."""
        if self.stratification == "current":
            return
        if self.objective != "stratified":
            raise ValueError(
                f"stratification: {self.stratification!r} has no effect on the marginal objective; "
                "set objective to 'stratified' as well"
            )
        if self.sharded:
            raise ValueError(
                f"stratification: {self.stratification!r} keeps a second model, which fsdp does not shard; expected "
                "current, or no fsdp, which accelerate's configuration may ask for too"
            )
        if self.load_in_4bit:
            raise ValueError(
                f"stratification: {self.stratification!r} averages weights, which those of 4 bits do not allow; "
                "expected current, or no load_in_4bit"
            )

    def _check_lora(self) -> None:
        """Raise ValueError for settings of adapters that have no effect, or that do not go together."""
        for name in ("lora_targets", "lora_keep_adapter", "load_in_4bit"):
            if getattr(self, name) and self.lora_rank is None:
                raise ValueError(
                    f"{name}: {getattr(self, name)!r} has no effect on a model that is trained whole; "
                    "set lora_rank, such as 16, as well"
                )
        if self.load_in_4bit and self.sharded:
            raise ValueError(
                "load_in_4bit: weights of 4 bits are not sharded; expected one of load_in_4bit and fsdp, which "
                "accelerate's configuration may ask for too"
            )

    @property
    def sharded(self) -> bool:
        """Whether FSDP is wanted, by `fsdp` or by the configuration of `accelerate launch`."""
        return self.fsdp or os.environ.get(ACCELERATE_FSDP, "false").lower() == "true"

    @property
    def peak_learning_rate(self) -> float:
        """`learning_rate`, or its default: ten times as high for adapters as for a model that is trained whole."""
        return self.learning_rate or (2e-5 if self.lora_rank is None else 2e-4)

    @property
    def targets(self) -> list[str] | None:
        """The names of `lora_targets`."""
        return None if self.lora_targets is None else [name.strip() for name in self.lora_targets.split(",")]

    @property
    def rows_per_pass(self) -> int | None:
        """`batch_size`, or its default: 16, and no limit beside a token budget."""
        return 16 if self.batch_size is None and self.token_budget is None else self.batch_size


@with_help
@dataclass(kw_only=True)
class EmbeddingTrainConfig(RunConfig):
    """The settings of fitting a reward on embeddings that `irm-fast embed` wrote.

    Raises:
        ValueError: As `RunConfig`.

    Examples:
        >>> from irm_fast import EmbeddingTrainConfig
        >>> config = EmbeddingTrainConfig(embeddings="log.safetensors", data="log.jsonl", output="reward_model")
        >>> config.hidden_layers
        'auto'
    """

    program: ClassVar[str] = "with embeddings"

    embeddings: str = option(
        MISSING, "Train on what irm-fast embed wrote of the log, a file or a folder, not on its text.", group=MAIN
    )
    model: str = option(
        "", "The language model of the embeddings, where it is no longer at the place that they name.", group=MAIN
    )
    hidden_layers: str = option("auto", "Layers of the reward: auto, linear, or widths as 128,64.", group=ON_EMBEDDINGS)


PROGRAMS: tuple[type[RunConfig], ...] = (TrainConfig, EmbeddingTrainConfig)


def load_config(path: str | Path | None, **overrides: Any) -> TrainConfig | EmbeddingTrainConfig:
    """The config of either program: that of embeddings where `embeddings` is given.

    Args:
        path: A YAML file of settings, or None.
        overrides: Settings that replace those of the file, unless they are None.

    Raises:
        ValueError: As `RunConfig.load`.
        OSError: The file cannot be read.
    """
    return _of_either_kind(*_merged(path, overrides))


def log_settings(path: str | Path | None, settings: Mapping[str, Any]) -> LogSettings:
    """How a log is to be read, by a YAML file of a run's settings and by settings that replace those of the file.

    Args:
        path: The file, or None.
        settings: Settings by name; None stands for what the file says.

    Raises:
        ValueError: As `RunConfig.load`.
        OSError: The file cannot be read.
    """
    values, _ = _merged(path, settings)
    return LogSettings(
        **{setting.name: values[setting.name] for setting in fields(LogSettings) if setting.name in values}
    )


def saved_config(values: Mapping[str, Any], source: str) -> TrainConfig | EmbeddingTrainConfig:
    """The settings that a run kept, see `RunConfig.to_dict`.

    Args:
        values: The settings by name.
        source: Where they come from, for errors.

    Raises:
        ValueError: As `load_config`.
    """
    return _of_either_kind(values, source)


def _of_either_kind(values: Mapping[str, Any], source: str) -> TrainConfig | EmbeddingTrainConfig:
    kind = EmbeddingTrainConfig if values.get("embeddings") else TrainConfig
    return kind.from_mapping(values, source)


def _read_settings(path: str | Path) -> dict[str, Any]:
    """The settings of a file under their present names."""
    values = read_yaml(path)
    for old, new in RENAMED.items():
        if old in values and new not in values:
            values[new] = values.pop(old)
    return values


def _merged(path: str | Path | None, overrides: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """The settings of a file under those that were given, and how errors name their source."""
    given = {key: value for key, value in overrides.items() if value is not None}
    if path is None:
        return given, COMMAND_LINE
    values = _read_settings(path)
    for name in ("resume", "overwrite"):
        if values.pop(name, False):
            raise ValueError(
                f"{path}: {name}: it belongs to one start of a run, not to its settings: a file that is used again "
                f"would {'delete' if name == 'overwrite' else 'go on with'} a run unasked; remove it here and give "
                f"--{name} on the command line, or {name}=True in Python"
            )
    return {**values, **given}, str(path)
