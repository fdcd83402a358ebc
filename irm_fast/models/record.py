"""The files of a saved model beside its checkpoint: `irm_fast.json`, and small tensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from irm_fast.data import schema
from irm_fast.data.problems import FieldError
from irm_fast.data.signals import DESIGNS, RewardSpec
from irm_fast.data.writing.manifest import write_manifest
from irm_fast.data.writing.whole import whole_path, write_whole

FORMAT = 1  # of irm_fast.json
RECORD, PROPENSITY_FILE = "irm_fast.json", "propensity.safetensors"
PROPENSITIES = "propensities"  # the folder, beside a checkpoint, of a model of propensities that were fitted first
_FINGERPRINTED = ("*.safetensors", "*.json", "*.jinja", "*.model")  # weights, settings, tokenizer
_PIECE = 4096  # bytes
CHECKPOINT_WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors")  # the names that transformers gives them
INDEX = "model.safetensors.index.json"  # of several

SIGNALS: dict[str, schema.Rule] = {  # one entry a signal
    "polarity": schema.list_of(schema.choice(1, -1)),
    "misclick_rate": schema.list_of(schema.number(0, 1)),
}
_DECLARED = {  # of the settings of the run: how its log was read
    **dict.fromkeys(
        ("map", "absent", "null", "signals", "counts"),
        schema.optional(schema.either(schema.text(), schema.mapping, schema.names())),
    ),
    **dict.fromkeys(("fold_system", "join_turns"), schema.optional(schema.flag)),
    "max_errors": schema.optional(schema.number(0)),
}
SOURCE = schema.fields(  # how embeddings are made
    {
        "model": schema.text(),
        "kind": schema.choice("decoder", "encoder"),
        "pooling": schema.choice("last", "mean", "cls"),
        "max_length": schema.whole(1),
        "precision": schema.choice("float32", "bfloat16"),
        "dtype": schema.choice("float32", "bfloat16"),
        "fingerprint": schema.text(),
    },
    {
        **dict.fromkeys(("normalize", "lower_case", "keeps_bos"), schema.flag),
        **dict.fromkeys(("prompt", "date"), schema.text()),
    },
)
_COUNTS = schema.fields(dict.fromkeys(("acted", "silent", "missing"), schema.whole()))
_DATA = schema.fields(  # of a part of the log
    {"rows": schema.whole(), "labels": schema.list_of(schema.whole()), "signals": schema.by_name(_COUNTS)},
    {
        **dict.fromkeys(("users", "sessions"), schema.optional(schema.whole())),
        **dict.fromkeys(("times", "characters"), schema.optional(schema.list_of(schema.number()))),
        **dict.fromkeys(("features", "segments"), schema.list_of(schema.text())),
    },
)
_BASE = schema.fields(  # the language model that it was made of
    {"kind": schema.choice("hub", "folder"), "name": schema.text()},
    dict.fromkeys(("license", "license_name", "license_link"), schema.text()),
)
_LAYOUT = schema.fields(
    {
        "design": schema.choice(*DESIGNS),
        "signals": schema.names(),
        **SIGNALS,
        "feature_names": schema.names(),
        "max_length": schema.whole(1),
        "reward_bias": schema.number(),
    },
    {
        "estimator": schema.choice("two-step", "joint"),
        "keeps_bos": schema.flag,
        "diagnosis": schema.optional(schema.mapping),
        "training": schema.optional(schema.fields({}, _DECLARED)),
        "embeddings": SOURCE,
        "data": schema.list_of(_DATA),
        "base": _BASE,
        "versions": schema.by_name(schema.text()),
        "learned": schema.optional(schema.text()),
        **dict.fromkeys(("gain_over_constant", "gain_over_constant_error"), schema.optional(schema.number())),
        "position": schema.optional(schema.number()),
    },
)


def _rule(name: str, record: Any) -> None:
    """Check `irm_fast.json`."""
    _LAYOUT(name, record)
    if record["design"] == "features" and not record["feature_names"]:
        raise FieldError("feature_names", "got none; expected some, as the design 'features' reads them")
    given = [field for field in SIGNALS if record[field] or field != "misclick_rate"]  # none stands for rates of 0
    schema.check_alike(**{field: record[field] for field in ("signals", *given)})


def read_record(directory: str | Path) -> dict[str, Any]:
    """The content of a saved model's `irm_fast.json`, checked field by field.

    Raises:
        ValueError: The file is missing, of a newer format, or damaged.
    """
    record = schema.read_record(Path(directory) / RECORD, FORMAT, "irm-fast train", _rule)
    record.setdefault("estimator", "joint")  # which earlier versions had alone
    record.setdefault("keeps_bos", False)  # likewise
    return record


Beside = Callable[[Mapping[str, Any]], Mapping[str, str]]  # of a record, the texts of further files by their names


def write_record(
    directory: Path,
    files: Iterable[str],
    spec: RewardSpec,
    reward_bias: float,
    more: Mapping[str, Any],
    beside: Beside | None = None,
) -> None:
    """Write files that are made of the record, the manifest of a saved model, and last `irm_fast.json`.

    Args:
        directory: The folder.
        files: The paths of its files within it, which are there.
        spec: The spec of the model.
        reward_bias: The bias that the saved classifier cannot hold.
        more: Whatever else a reader should know.
        beside: Makes the texts of further files of the content of `irm_fast.json`, such as a model card. None: none.
    """
    content = {"format": FORMAT, "version": version("irm-fast"), **asdict(spec), **more, "reward_bias": reward_bias}
    text = json.dumps(content, indent=2) + "\n"
    further = beside(content) if beside is not None else {}
    for name, written in further.items():
        write_whole(directory / name, written)
    write_manifest(directory, [*files, *further], contents={RECORD: text})
    write_whole(directory / RECORD, text)


def folder_fingerprint(directory: str | Path) -> str:
    """Hash the folder of a saved model: small files whole, and of large ones their size and a thousand pieces.

    Training changes every weight, and so the pieces. What others put into the folder, such as a report, is not read.

    Args:
        directory: The folder.

    Returns:
        32 hexadecimal digits.
    """
    return files_fingerprint(sorted(path for pattern in _FINGERPRINTED for path in Path(directory).glob(pattern)))


def files_fingerprint(paths: Iterable[Path]) -> str:
    """Hash files as `folder_fingerprint` does; returns 32 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            for start in range(0, size, max(_PIECE, size // 1000)):
                file.seek(start)
                digest.update(file.read(_PIECE))
    return digest.hexdigest()


def spec_of_record(record: Mapping[str, Any]) -> RewardSpec:
    """The spec that `write_record` wrote."""
    return RewardSpec(**{f.name: frozen(record[f.name]) for f in fields(RewardSpec)})


def frozen(value: Any) -> Any:
    """The value as a tuple where it is a list, which JSON has in the place of tuples."""
    return tuple(value) if isinstance(value, list) else value


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors as safetensors.

    Args:
        tensors: The tensors by name.
        path: The file. One of this name is replaced.
        metadata: What the file says beside them, or None.
    """
    with whole_path(path) as unfinished:
        save_file(dict(tensors), unfinished, metadata=None if metadata is None else dict(metadata))


def read_tensor(directory: str | Path, name: str) -> Tensor:
    """A tensor of a checkpoint, as it is in the file that holds it.

    Args:
        directory: The folder of the checkpoint.
        name: The name of the tensor.

    Raises:
        ValueError: No file of the checkpoint holds it.
    """
    for path in (path for pattern in CHECKPOINT_WEIGHTS for path in Path(directory).glob(pattern)):
        with safe_open(path, "pt") as file:
            if name in file.keys():  # noqa: SIM118  # it is no mapping
                tensor: Tensor = file.get_tensor(name)
                return tensor
    raise ValueError(f"{directory}: no {name} in {' or '.join(CHECKPOINT_WEIGHTS)}; expected what irm-fast train wrote")
