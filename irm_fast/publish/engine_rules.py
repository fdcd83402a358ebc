"""What engines that are not run here do with a folder, by the rules in their source and by the files of the folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from irm_fast.data.schema import read_object
from irm_fast.publish.readings import Reading

CLASSIFIER = "ForSequenceClassification"
_VLLM, _VLLM_EMBED, _SGLANG, _TEI, _TEI_DENSE = "1c71367", "055e47c", "005da00", "0d124dc", "0d1b698"
_OF_SGLANG = tuple(f"{family}{CLASSIFIER}" for family in ("Llama", "Qwen2", "Qwen3", "Gemma2"))
_NOT_OF_TEI = ("Llama", "Qwen2", "Qwen3", "Mistral", "Gemma3")  # families without a classifier in its Rust code
_MODULES = "torch.nn.modules."
_DENSE_OF_TEI = (f"{_MODULES}linear.Identity", f"{_MODULES}activation.Tanh")
_SIGN = "is divided by its length otherwise, and is 1 or -1 then"


def classifier_engines(folder: Path) -> list[Reading]:
    """How vLLM, SGLang and text-embeddings-inference read a sequence classifier.

    Args:
        folder: Its folder, with config.json.

    Raises:
        ValueError: config.json is damaged.
    """
    config = read_object(folder / "config.json", "irm-fast train")
    name = ", ".join(architectures(config)) or "no architecture"
    vllm, sglang = f"by source, {_VLLM}", f"by source, {_SGLANG}"
    if not any(one.endswith(CLASSIFIER) for one in architectures(config)):
        lacking = f"not served: config.json names {name}, and no *{CLASSIFIER}"
        return [Reading("vLLM", vllm, note=lacking), Reading("SGLang", sglang, note=lacking)]
    labels = label_count(config)
    many = "" if labels == 1 else f"; {labels} numbers where a reward is one"
    refused = f"; rows of more than {limit:,} tokens are refused" if (limit := _limit(folder, config)) else ""
    served = any(one in _OF_SGLANG for one in architectures(config))
    found = [
        Reading("vLLM, /classify", vllm, note=f"{_of_classify(config, labels)}{many}{refused}"),
        Reading("vLLM, /score", vllm, note=f"{_of_score(config, labels)}{many}{refused}"),
        Reading(
            "SGLang",
            sglang,
            note=f"score.weight at the last token, no activation{many}" if served else f"not served: no class {name}",
        ),
    ]
    if any(one == f"{family}{CLASSIFIER}" for one in architectures(config) for family in _NOT_OF_TEI):
        note = f"not served: no classifier of this family, {name}"
        found.append(Reading("text-embeddings-inference", f"by source, {_TEI}", note=note))
    return found


def sentence_engines(folder: Path) -> list[Reading]:
    """How vLLM and text-embeddings-inference read a reward that is a model of sentence-transformers.

    Args:
        folder: Its folder, with modules.json.

    Raises:
        ValueError: A file is damaged.
    """
    activations = [str(read_object(path, "irm-fast export").get("activation_function")) for path in _dense(folder)]
    strange = sorted({name.rpartition(".")[2] for name in activations if name not in _DENSE_OF_TEI})
    tei = f'ask for "normalize": false: the reward {_SIGN}'
    if strange:
        tei = f"not served: its Dense layers take Identity and Tanh, these have {', '.join(strange)}"
    vllm = f'ask for "use_activation": false: the reward {_SIGN}'
    prompts = read_object(folder / "config_sentence_transformers.json", "irm-fast export").get("prompts") or {}
    before = "".join(f"; put {text!r} before each text" for text in prompts.values())
    return [
        Reading(
            "text-embeddings-inference, /embed", f"by source, {_TEI_DENSE}", note=tei + ("" if strange else before)
        ),
        Reading("vLLM, /v1/embeddings", f"by source, {_VLLM_EMBED}", note=f"{vllm}{before}"),
    ]


def architectures(config: Mapping[str, Any]) -> list[str]:
    """The names of the classes that config.json asks for."""
    named = config.get("architectures")
    return [str(name) for name in named] if isinstance(named, list) else []


def label_count(config: Mapping[str, Any]) -> int:
    """The number of outputs, as transformers takes it from config.json."""
    labels = config.get("id2label")
    return len(labels) if isinstance(labels, Mapping) else int(config.get("num_labels", 2))


def _limit(folder: Path, config: Mapping[str, Any]) -> int | None:
    """The number of tokens that vLLM takes: the lower of what config.json and tokenizer_config.json say."""
    path = folder / "tokenizer_config.json"
    told = read_object(path, "irm-fast train").get("model_max_length") if path.is_file() else None
    known = [int(value) for value in (told, config.get("max_position_embeddings")) if isinstance(value, (int, float))]
    return min(known, default=None) if min(known, default=0) > 0 else None


def _squashed(labels: int) -> str:
    return "a sigmoid" if labels < 2 else "a softmax"


def _of_classify(config: Mapping[str, Any], labels: int) -> str:
    """What /classify applies to the score, by `problem_type`."""
    problem = config.get("problem_type")
    if problem == "regression":
        return "identity, as problem_type is regression"
    what = "a sigmoid" if problem == "multi_label_classification" else _squashed(labels)
    return f"{what}, as problem_type is {problem or 'not set'}: another number, unless asked with use_activation: false"


def _of_score(config: Mapping[str, Any], labels: int) -> str:
    """What /score applies to the score, by what sentence-transformers wrote."""
    own = config.get("sentence_transformers")
    key, name = "sentence_transformers.activation_fn", own.get("activation_fn") if isinstance(own, Mapping) else None
    if name is None:
        key, name = "sbert_ce_default_activation_function", config.get("sbert_ce_default_activation_function")
    if name is None:
        return f"{_squashed(labels)}, as sentence_transformers.activation_fn is not set: another number"
    if not str(name).startswith(_MODULES):
        return f"not served: {key} is {name}, and not of {_MODULES}*"
    kind = str(name).rpartition(".")[2]
    return f"identity, by {key}" if kind == "Identity" else f"{kind}, by {key}: another number"


def _dense(folder: Path) -> Iterator[Path]:
    """The settings of the linear layers of a model of sentence-transformers."""
    yield from sorted(folder.glob("*_Dense/config.json"))
