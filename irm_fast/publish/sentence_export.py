"""A reward on the embeddings of an encoder as a model of sentence-transformers: its files, written without it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from irm_fast.data.writing.manifest import files_of
from irm_fast.data.writing.whole import whole_files, write_whole
from irm_fast.embeddings.dense import Layer, dense_layers
from irm_fast.embeddings.embedder import Embedder
from irm_fast.embeddings.text_model import EmbeddedRewardModel, open_source
from irm_fast.models.foreign_files import quiet_transformers
from irm_fast.models.record import save_tensors

_MODES = {"cls": "pooling_mode_cls_token", "mean": "pooling_mode_mean_tokens", "last": "pooling_mode_lasttoken"}
_PROMPT = "reward"  # the name of the text before every text


def check_exportable(model: EmbeddedRewardModel) -> None:
    """Raise ValueError if sentence-transformers could not read the texts of a model as the model does."""
    if why := why_not_exportable(model):
        raise ValueError(
            f"to: {why}; expected an encoder, or a linear reward on the last token, which --to hf exports as a "
            "classifier"
        )


def why_not_exportable(model: EmbeddedRewardModel) -> str:
    """Say why sentence-transformers could not read the texts of a model as the model does; "" if it could."""
    if model.source.kind == "encoder":
        return ""
    return "sentence-transformers reads plain text, and this reward is on a decoder, which reads its chat template"


def write_sentence_transformer(model: EmbeddedRewardModel, folder: Path) -> list[str]:
    """Write the modules Transformer, Pooling, Normalize where the embeddings are normalised, and Dense ones.

    Args:
        model: A model that `check_exportable` lets pass.
        folder: The folder, which is made where there is none.

    Returns:
        The paths of the files within it.
    """
    embedder = open_source(replace(model.source, precision="float32"))
    layers = dense_layers(model.estimator._fitted)
    modules = [("Transformer", ""), ("Pooling", "1_Pooling")]
    modules += [("Normalize", "2_Normalize")] if model.source.normalize else []
    modules += [("Dense", f"{len(modules) + number}_Dense") for number in range(len(layers))]
    with quiet_transformers(), whole_files(folder) as unfinished:
        embedder.body.save_pretrained(unfinished)
        _tokenizer_as_used(embedder).save_pretrained(unfinished)
        for name, content in _settings(embedder, modules).items():
            _write(unfinished / name, content)
        dense = [path for kind, path in modules if kind == "Dense"]
        for number, (path, layer) in enumerate(zip(dense, layers, strict=True), 1):
            _write_dense(unfinished / path, layer, last=number == len(layers))
        return files_of(unfinished)


def _tokenizer_as_used(embedder: Embedder) -> Any:
    """The tokenizer of an embedder, whose saved files say that it pads and truncates as the embedder does."""
    tokenizer = embedder.tokenizer
    tokenizer.model_max_length = embedder.source.max_length
    tokenizer.init_kwargs.update(padding_side=tokenizer.padding_side, truncation_side=tokenizer.truncation_side)
    return tokenizer


def _settings(embedder: Embedder, modules: list[tuple[str, str]]) -> dict[str, Any]:
    """The contents of the files of settings by their paths."""
    source = embedder.source
    listed = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (kind, path) in enumerate(modules)
    ]
    prompts = {"prompts": {_PROMPT: source.prompt}, "default_prompt_name": _PROMPT} if source.prompt else {}
    modes = {mode: pooling == source.pooling for pooling, mode in _MODES.items()}
    found: dict[str, Any] = {
        "modules.json": listed,
        "sentence_bert_config.json": {"max_seq_length": source.max_length, "do_lower_case": source.lower_case},
        "config_sentence_transformers.json": prompts,
        "1_Pooling/config.json": {"word_embedding_dimension": embedder.width, **modes},
    }
    return found | ({"2_Normalize/config.json": {}} if source.normalize else {})


def _write_dense(folder: Path, layer: Layer, *, last: bool) -> None:
    """Write a linear layer and what follows it."""
    weight, bias = (torch.from_numpy(values).float().contiguous() for values in layer)
    activation = "torch.nn.modules.linear.Identity" if last else "torch.nn.modules.activation.ReLU"
    size = {"in_features": weight.shape[1], "out_features": weight.shape[0]}
    _write(folder / "config.json", {**size, "bias": True, "activation_function": activation})
    save_tensors({"linear.weight": weight, "linear.bias": bias}, folder / "model.safetensors")


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    write_whole(path, json.dumps(content, indent=2) + "\n")
