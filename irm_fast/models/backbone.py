"""A language model and its tokenizer, loaded and made ready to score the last token of a conversation."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import safe_open

from irm_fast.models.foreign_files import loading
from irm_fast.models.sizes import check_sizes, check_weights_fit
from irm_fast.models.template import set_template
from irm_fast.models.tokens import CHUNK, add_padding_token, encode, set_padding

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from irm_fast.data.messages import Messages

_REWARD = {"num_labels": 1, "problem_type": "regression", "id2label": {0: "reward"}, "label2id": {"reward": 0}}


def load_backbone(
    model: str | Path,
    dtype: torch.dtype = torch.float32,
    *,
    four_bits: bool = False,
    weights: bool = True,
    date: str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a pretrained decoder as a `*ForSequenceClassification` with one output; the score is float32.

    The tokenizer gets what a reward model needs: a padding token that is not the final one, padding on the
    right, truncation on the left, a chat template whose text ends in EOS and that prints one date on all days. A new
    `score` head is drawn from torch's global generator; one that the checkpoint already has is kept.

    Args:
        model: A folder or hub id.
        dtype: The precision of the weights but for the score.
        four_bits: Load the linear layers in 4 bits, which compute in `dtype`; on the current CUDA device.
        weights: Whether to read its weights; without them it holds anything, see `load_classifier`.
        date: The date that its chat template prints, as of `template.set_template`.

    Raises:
        ValueError: The model is unknown, an adapter, or has no linear score, its files lack weights, or no tokenizer
            loads.
    """
    name = _resolved(model)
    tokenizer = load_tokenizer(name)
    how: dict[str, Any] = {"quantization_config": _four_bits(dtype)} if four_bits else {}
    classifier = load_classifier(name, dtype, weights=weights, **_REWARD, **how)
    classifier.score.float()
    set_padding(classifier, tokenizer)
    set_template(tokenizer, date)
    return classifier, tokenizer


def count_tokens(model: str | Path, conversations: Sequence[Messages], max_length: int) -> tuple[np.ndarray, int]:
    """Count the tokens of conversations without loading the weights of the model.

    Args:
        model: A folder or hub id.
        conversations: N conversations, of which slices are read.
        max_length: The number of tokens of a row, at most.

    Returns:
        The number of tokens that `encode` makes of each conversation, whole, (N,); and the limit, as of
        `limit_of_model`.

    Raises:
        ValueError: As `load_backbone`.
    """
    tokenizer = ready_tokenizer(model)
    lengths = [np.empty(0, np.int64)]
    for start in range(0, len(conversations), CHUNK):  # lists of numbers are large
        rows, _ = encode(tokenizer, conversations[start : start + CHUNK], sys.maxsize)
        lengths.append(np.array(list(map(len, rows)), np.int64))
    return np.concatenate(lengths), limit_of_model(model, max_length)


def ready_tokenizer(model: str | Path, date: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub id with the padding token and the chat template that `load_backbone` gives it.

    Args:
        model: A folder or hub id.
        date: As of `load_backbone`.

    Raises:
        ValueError: As `load_backbone`.
    """
    tokenizer = load_tokenizer(_resolved(model))
    add_padding_token(tokenizer)
    set_template(tokenizer, date)
    return tokenizer


def limit_of_model(model: str | Path, max_length: int) -> int:
    """`token_limit` of a folder or hub id."""
    return token_limit(model_config(_resolved(model)), max_length)


def token_limit(config: Any, max_length: int) -> int:
    """The lower of `max_length` and the model's own limit of positions.

    Args:
        config: A configuration of transformers.
        max_length: The number of tokens of a row, at most.
    """
    return int(min(max_length, getattr(config.get_text_config(), "max_position_embeddings", max_length)))


def model_config(name: str) -> Any:
    """The configuration of a folder or hub id, whose sizes are those of a model.

    Raises:
        ValueError: There is none, it is of a kind that transformers does not know, or of sizes that no model has.
    """
    from transformers import AutoConfig, PretrainedConfig

    where = "of an unknown kind" if Path(name).is_dir() else "no such folder, and not found on the hub"
    with loading(f"model {name!r}: {where}"):
        content, _ = PretrainedConfig.get_config_dict(name)
    check_sizes(content, f"{name}/config.json")
    with loading(f"model {name!r}: {where}"):
        return AutoConfig.from_pretrained(name, trust_remote_code=False)


def _refuse_adapter(name: str) -> None:
    """Raise ValueError if a folder or hub id holds an adapter: transformers would load its base, and it beside that."""
    from transformers.utils import find_adapter_config_file

    try:
        path = find_adapter_config_file(name)
    except (OSError, ValueError):  # no such model, which `model_config` says
        return
    if path is None:
        return
    with loading(f"model {name!r}: an adapter whose adapter_config.json is damaged"):
        adapter = dict(json.loads(Path(path).read_text(encoding="utf-8")))
    base, task = adapter.get("base_model_name_or_path"), adapter.get("task_type")
    kind, labels = ("SequenceClassification", ", num_labels=1") if task == "SEQ_CLS" else ("CausalLM", "")
    raise ValueError(
        f"model {name!r}: an adapter of {base!r}, no whole model; expected one. Merge it first, in Python: "
        f"from peft import AutoPeftModelFor{kind} as Model; "
        f"Model.from_pretrained({name!r}{labels}).merge_and_unload().save_pretrained('MERGED'); "
        "from transformers import AutoTokenizer; "
        f"AutoTokenizer.from_pretrained({base!r}).save_pretrained('MERGED'); and give MERGED"
    )


def _resolved(model: str | Path) -> str:
    """The folder or hub id of a model, as text, after its configuration was read."""
    name = str(model)
    if (name.startswith((".", "/", "~")) or name.count("/") > 1) and not Path(name).expanduser().is_dir():
        raise ValueError(f"model {name!r}: no such folder; expected a folder with config.json, or a hub id")
    name = str(Path(name).expanduser()) if Path(name).expanduser().is_dir() else name
    _refuse_adapter(name)
    model_config(name)
    return name


def _four_bits(dtype: torch.dtype) -> Any:
    """How bitsandbytes quantises: normal floats of 4 bits with their scales quantised too (QLoRA, arXiv:2305.14314)."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=["score"],
    )


def skeleton(model: str | Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A model as `load_backbone` loads it, on the meta device: its modules and shapes without memory for weights.

    Args:
        model: A folder or hub id.
        dtype: The precision of the weights.

    Raises:
        ValueError: The model is unknown, an adapter, or of a kind that has no sequence classifier.
    """
    name = _resolved(model)
    return skeleton_of(model_config(name), dtype)


def skeleton_of(config: Any, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The classifier of a configuration of transformers, on the meta device; arguments and errors as of `skeleton`."""
    from transformers import AutoModelForSequenceClassification

    config = copy.deepcopy(config)
    config.num_labels = 1
    with loading(f"model: {type(config).__name__} has no sequence classifier"), torch.device("meta"):
        return AutoModelForSequenceClassification.from_config(config, dtype=dtype)


def load_classifier(
    name: str, dtype: torch.dtype = torch.float32, *, weights: bool = True, **settings: Any
) -> PreTrainedModel:
    """Load an `AutoModelForSequenceClassification` with a bias-free linear score of one output.

    Args:
        name: A folder or hub id.
        dtype: The precision of its weights.
        weights: Whether to read its weights. Without them it takes hardly any memory until they are written: they come
            from another process.
        settings: Further entries of its configuration, and ways to load it.

    Raises:
        ValueError: As `load_backbone`.
    """
    from transformers import AutoModelForSequenceClassification

    report: dict[str, Any] = {"missing_keys": (), "mismatched_keys": ()}
    if weights:
        config = model_config(name)
        four_bits = "quantization_config" in settings or hasattr(config, "quantization_config")
        check_weights_fit(skeleton_of(config, dtype), weight_files(name), name, four_bits=four_bits)
    with loading(f"model {name!r}: not loadable to score text"):
        if weights:
            model, report = AutoModelForSequenceClassification.from_pretrained(
                name,
                dtype=dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported below, with the names
                trust_remote_code=False,
                **settings,
            )
        else:
            model = _without_weights(name, dtype, settings)
    head = getattr(model, "score", None)
    if not isinstance(head, torch.nn.Linear) or head.bias is not None or head.out_features != 1:
        raise ValueError(
            f"model {name!r}: {type(model).__name__} has no bias-free linear 'score' on its last token; "
            "expected a decoder such as Llama, Qwen, Mistral or Gemma"
        )
    check_weights(name, set(report["missing_keys"]) - {"score.weight"})
    for key, got, expected in report["mismatched_keys"]:
        raise ValueError(f"model {name!r}: {key} has shape {tuple(got)}; expected {tuple(expected)}")
    return model


def _without_weights(name: str, dtype: torch.dtype, settings: dict[str, Any]) -> PreTrainedModel:
    """The model that `load_classifier` loads, its buffers set and its weights in memory that nothing has touched."""
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = AutoConfig.from_pretrained(name, trust_remote_code=False, **settings)
    with init_empty_weights(include_buffers=False):
        model: PreTrainedModel = AutoModelForSequenceClassification.from_config(config, dtype=dtype)
    for module in model.modules():
        for key, weight in module._parameters.items():
            if weight is not None and weight.is_meta:
                module._parameters[key] = torch.nn.Parameter(torch.empty_like(weight, device="cpu"))
    return model


def is_stored_in(name: str, dtype: torch.dtype) -> bool:
    """Whether all floating weights in the files of a model are of a dtype, whatever its configuration says.

    Args:
        name: A folder or hub id. Files of another format than safetensors count as of another dtype.
        dtype: The dtype, float32 or bfloat16.
    """
    kinds: set[str] = set()
    for path in weight_files(name):
        with loading(f"model {name!r}: {Path(path).name} is damaged"), safe_open(path, "pt") as file:
            kinds |= {file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118  # it is no mapping
    return kinds - {"I64", "BOOL"} == {{torch.float32: "F32", torch.bfloat16: "BF16"}[dtype]}


def weight_files(name: str) -> list[str]:
    """The safetensors files of a folder or hub id that transformers would load; none, if there are others alone."""
    from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file
    from transformers.utils.hub import get_checkpoint_shard_files

    with suppress(OSError):
        return [str(cached_file(name, SAFE_WEIGHTS_NAME))]
    try:
        index = cached_file(name, SAFE_WEIGHTS_INDEX_NAME)
    except OSError:
        return []
    with loading(f"model {name!r}: {SAFE_WEIGHTS_INDEX_NAME} is damaged"):
        return list(get_checkpoint_shard_files(name, index)[0])


def check_weights(name: str, missing: Iterable[str]) -> None:
    """Raise ValueError if the files of a model lack weights, given the names of those that are missing."""
    lost = sorted(missing)
    if lost:
        raise ValueError(f"model {name!r}: its files lack {len(lost)} weights, among them {lost[0]}")


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub id.

    Raises:
        ValueError: No tokenizer loads, or it has no EOS token.
    """
    from transformers import AutoTokenizer

    with loading(f"model {name!r}: no tokenizer that loads"):
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    if tokenizer.eos_token_id is None:
        raise ValueError(f"model {name!r}: no EOS token; expected eos_token in tokenizer_config.json")
    return tokenizer
