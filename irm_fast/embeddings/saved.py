"""A fitted `EmbeddingRewardModel` as safetensors and JSON."""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from irm_fast.diagnostics import Diagnosis
from irm_fast.embeddings.activity import Activity
from irm_fast.embeddings.parts import Network, Propensities, Reward, Scaler

if TYPE_CHECKING:
    from irm_fast.embeddings.estimator import EmbeddingRewardModel

FORMAT = 1
TENSORS, RECORD = "embedding_model.safetensors", "embedding_model.json"
PUBLIC = ("n_features_in_", "n_propensity_features_", "propensity_designs_", "is_linear_", "held_out_nll_")


def save(model: EmbeddingRewardModel, folder: Path) -> None:
    """Write the weights, then the record, which tells that all is there."""
    folder.mkdir(parents=True, exist_ok=True)
    reward, propensities = model._reward, model._propensities
    tensors = {"reward.weight": reward.weight, "reward.bias": reward.bias}
    for name in ("weight", "feature_weight", "bias", "factor"):
        if (value := getattr(propensities, name)) is not None:
            tensors[f"propensity.{name}"] = value
    for name, scaler in (("scaler", model._scaler), ("feature_scaler", model._feature_scaler)):
        if scaler is not None:
            tensors |= {f"{name}.mean": scaler.mean, f"{name}.scale": scaler.scale}
    widths = {}
    for kind, networks in (("reward", reward.networks), ("propensity", propensities.networks)):
        widths[kind] = [_widths(network) for network in networks]
        for number, network in enumerate(networks):
            tensors |= {f"{kind}.{number}.{key}": value for key, value in network.state_dict().items()}
    save_file({name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}, folder / TENSORS)
    record = {
        "format": FORMAT,
        "version": version("irm-fast"),
        "settings": {name: _plain(value) for name, value in model.get_params().items()},
        "fitted": {name: _plain(getattr(model, name)) for name in PUBLIC},
        "activity": None if model.activity_ is None else asdict(model.activity_),
        "networks": widths,
        "diagnosis": model.diagnosis_.to_dict(),
    }
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def load(kind: type[EmbeddingRewardModel], folder: Path) -> EmbeddingRewardModel:
    """The model that `save` wrote, on its device.

    Raises:
        ValueError: the folder holds no saved model, one of a newer format, or a damaged one.
    """
    record = _read_record(folder / RECORD)
    try:
        tensors = load_file(folder / TENSORS)
        settings = {name: _tuple(value) for name, value in record["settings"].items()}
        if "propensity" in settings:  # the name before it was settled
            settings["propensity_design"] = settings.pop("propensity")
        model = kind(**settings)
        _restore(model, record, tensors)
    except (OSError, SafetensorError, KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"{folder}: damaged: {error}; expected what EmbeddingRewardModel.save wrote") from error
    return model


def _restore(model: EmbeddingRewardModel, record: dict[str, Any], tensors: dict[str, Any]) -> None:
    from irm_fast.embeddings.fitting import choose_device

    device = choose_device(model.device)
    tensors = {name: value.to(device) for name, value in tensors.items()}
    networks = {
        kind: tuple(_network(widths, f"{kind}.{number}.", tensors) for number, widths in enumerate(all_widths))
        for kind, all_widths in record["networks"].items()
    }
    for name in PUBLIC:
        setattr(model, name, _tuple(record["fitted"][name]))
    activity = record["activity"]
    model.activity_ = activity and Activity(**{name: _tuple(value) for name, value in activity.items()})
    model.classes_ = np.array([0, 1])
    model.diagnosis_ = Diagnosis.from_dict(record["diagnosis"])
    model._scaler = Scaler(tensors["scaler.mean"], tensors["scaler.scale"])
    has_features = "feature_scaler.mean" in tensors
    model._feature_scaler = (
        Scaler(tensors["feature_scaler.mean"], tensors["feature_scaler.scale"]) if has_features else None
    )
    model._reward = Reward(tensors["reward.weight"], tensors["reward.bias"], networks["reward"])
    model._propensities = Propensities(
        model.propensity_designs_,
        tensors["propensity.weight"],
        tensors["propensity.feature_weight"],
        tensors["propensity.bias"],
        networks["propensity"],
        tensors.get("propensity.factor"),
    )
    if model.is_linear_:
        model.set_linear_attributes()


def _read_record(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path}: not found; expected a folder that EmbeddingRewardModel.save wrote")
    try:
        record: Any = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: damaged, not readable as JSON: {error}") from error
    if not isinstance(record, dict):
        raise ValueError(
            f"{path}: damaged: got a {type(record).__name__}; expected what EmbeddingRewardModel.save wrote"
        )
    if record.get("format") != FORMAT:
        raise ValueError(f"{path}: format: got {record.get('format')}; expected {FORMAT}; upgrade irm-fast")
    return record


def _widths(network: Network) -> list[int]:
    """Inputs, hidden widths, outputs."""
    layers = [layer for layer in network.layers if isinstance(layer, torch.nn.Linear)]
    return [layers[0].in_features, *(layer.out_features for layer in layers)]


def _network(widths: list[int], prefix: str, tensors: dict[str, Any]) -> Network:
    network = Network(widths[0], widths[1:-1], widths[-1])
    state = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    network.load_state_dict(state)
    return network.to(tensors["reward.bias"].device)


def _plain(value: Any) -> Any:
    if isinstance(value, np.random.RandomState):
        return None
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    return list(value) if isinstance(value, tuple) else value


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
