"""Save a fitted `EmbeddingRewardModel` as safetensors and JSON, and read it back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from irm_fast.data import schema
from irm_fast.data.signals import DESIGN_CHOICES, DESIGNS
from irm_fast.data.writing.manifest import refuse_damage, write_manifest
from irm_fast.data.writing.whole import write_whole
from irm_fast.diagnostics import Diagnosis
from irm_fast.embeddings.context import Bins
from irm_fast.embeddings.context_layer import ContextLayer
from irm_fast.embeddings.context_step import Context
from irm_fast.embeddings.declared import Signals, declare
from irm_fast.embeddings.fitted import Fitted
from irm_fast.embeddings.optimize import choose_device
from irm_fast.embeddings.parts import Network, Propensities, Reward, Scaler
from irm_fast.models.record import SIGNALS, frozen, save_tensors

FORMAT = 1
PAIRS = "pairs"  # of a mapping by number
TENSORS, RECORD = "embedding_model.safetensors", "embedding_model.json"
CANDIDATE = "candidate."  # and the name of the candidate
WRITER = "EmbeddingRewardModel.save"

_WIDTH = schema.whole(1, 2**24)
_NUMBERS = schema.either(schema.number(), schema.list_of(schema.number()))
_BY_SIGNAL = schema.optional(schema.either(_NUMBERS, schema.mapping))
_SETTINGS: dict[str, schema.Rule] = {
    "hidden_layers": schema.either(schema.choice("auto"), schema.list_of(_WIDTH)),
    **dict.fromkeys(
        ("propensity_design", "propensity"),  # the second is what earlier versions called it
        schema.either(schema.choice(*DESIGN_CHOICES), schema.list_of(schema.choice(*DESIGN_CHOICES)), schema.mapping),
    ),
    "estimator": schema.choice("auto", "two-step", "joint"),
    "polarity": _BY_SIGNAL,
    "misclick_rate": _BY_SIGNAL,
    "after": schema.optional(schema.mapping),
    "labels_ignorable": schema.flag,
    "contradictions": schema.choice("error", "drop"),
    "n_folds": schema.whole(2),
    "batch_size": schema.whole(1),
    "learning_rate": schema.number(0),
    "weight_decay": schema.number(0),
    "max_epochs": schema.whole(1),
    "patience": schema.whole(1),
    "propensity_sd": _NUMBERS,
    "device": schema.text(),
    "random_state": schema.optional(schema.whole(0, 2**63)),
    "verbose": schema.whole(),
}
_NETWORKS = schema.list_of(schema.list_of(_WIDTH))
_LAYOUT = schema.fields(
    {
        "settings": schema.fields({"device": schema.text()}, _SETTINGS),
        "fitted": schema.fields(
            {
                "n_features_in_": _WIDTH,
                "n_propensity_features_": schema.whole(0, 2**24),
                "propensity_designs_": schema.list_of(schema.choice(*DESIGNS)),
                "is_linear_": schema.flag,
                "held_out_nll_": schema.optional(schema.number()),
            },
            {"after": schema.list_of(schema.whole(-1))},
        ),
        "networks": schema.fields({"reward": _NETWORKS, "propensity": _NETWORKS}),
        "diagnosis": schema.fields(
            {
                "kind": schema.text(),
                "verdict": schema.text(),
                "assumed": schema.list_of(schema.text()),
                "tests": schema.list_of(schema.fields(dict.fromkeys(("name", "result", "text"), schema.text()))),
                "sensitivity": schema.fields({"shared_activity": schema.list_of(schema.mapping)}),
                "remedies": schema.list_of(schema.text()),
            },
        ),
    },
    {
        "context": schema.optional(
            schema.fields({"parts": schema.names(), "who": schema.choice("user", "session")}),
        ),
        "signals": schema.fields({"names": schema.names(), **SIGNALS}),
    },
)


def _rule(name: str, record: Any) -> None:
    """Check `embedding_model.json`."""
    _LAYOUT(name, record)
    if "signals" in record:
        lists = {f"signals.{field}": record["signals"][field] for field in ("names", *SIGNALS)}
        designs = record["fitted"]["propensity_designs_"]
        schema.check_alike(**lists, **{"fitted.propensity_designs_": designs})


def write(folder: Path, settings: Mapping[str, Any], fitted: Fitted) -> None:
    """Write a fit: first the weights, then the record, whose presence shows that both files are complete.

    Args:
        folder: The folder to write to, which is made if it does not exist.
        settings: The constructor arguments of the estimator. A `RandomState` is replaced by None.
        fitted: The fit.
    """
    folder.mkdir(parents=True, exist_ok=True)
    reward, propensities = fitted.reward, fitted.propensities
    tensors = {"reward.weight": reward.weight, "reward.bias": reward.bias}
    if reward.factor is not None:
        tensors["reward.factor"] = reward.factor
    for name in ("weight", "feature_weight", "bias", "factor", "order"):
        if (value := getattr(propensities, name)) is not None:
            tensors[f"propensity.{name}"] = value
    for name, scaler in (("scaler", fitted.scaler), ("feature_scaler", fitted.feature_scaler)):
        if scaler is not None:
            tensors |= {f"{name}.mean": scaler.mean, f"{name}.scale": scaler.scale}
    widths = {}
    for kind, networks in (("reward", reward.networks), ("propensity", propensities.networks)):
        widths[kind] = [_widths(network) for network in networks]
        for number, network in enumerate(networks):
            tensors |= {f"{kind}.{number}.{key}": value for key, value in network.state_dict().items()}
    for name, candidate in fitted.candidates.items():
        tensors |= {f"{CANDIDATE}{name}.weight": candidate.weight, f"{CANDIDATE}{name}.bias": candidate.bias}
    if fitted.context is not None:
        tensors |= _context_tensors(fitted.context)
    save_tensors({name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}, folder / TENSORS)
    public = {
        "n_features_in_": fitted.n_features,
        "n_propensity_features_": fitted.n_propensity_features,
        "propensity_designs_": list(propensities.designs),
        "after": list(propensities.after),
        "is_linear_": fitted.is_linear,
        "held_out_nll_": fitted.held_out_nll,
    }
    record = {
        "format": FORMAT,
        "version": version("irm-fast"),
        "settings": {name: _plain(value) for name, value in settings.items()},
        "fitted": public,
        "context": None if (context := fitted.context) is None else {"parts": list(context.bins), "who": context.who},
        "signals": asdict(fitted.signals),
        "networks": widths,
        "diagnosis": fitted.diagnosis.to_dict(),
    }
    text = json.dumps(record, indent=2) + "\n"
    write_manifest(folder, [TENSORS], contents={RECORD: text})
    write_whole(folder / RECORD, text)


def read(folder: Path) -> tuple[dict[str, Any], Fitted]:
    """Read what `write` wrote, onto the device that the settings name.

    Args:
        folder: The folder.

    Returns:
        The settings and the fit.

    Raises:
        ValueError: The folder holds no saved model, one of a newer format, or a damaged one.
    """
    record = schema.read_record(folder / RECORD, FORMAT, WRITER, _rule)
    refuse_damage(folder, WRITER)
    try:
        settings = {name: frozen(value) for name, value in record["settings"].items()}
        settings = {
            name: dict(value[PAIRS]) if isinstance(value, Mapping) and PAIRS in value else value
            for name, value in settings.items()
        }
        if "propensity" in settings:  # the name of the parameter before it was settled
            settings["propensity_design"] = settings.pop("propensity")
        device = choose_device(settings["device"])
        tensors = {name: value.to(device) for name, value in load_file(folder / TENSORS).items()}
        return settings, _restored(record, tensors)
    except (OSError, SafetensorError, LookupError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{folder}: damaged: {error}; expected what {WRITER} wrote") from error


def _restored(record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Fitted:
    """Return the fit of a record and its tensors."""
    networks = {
        kind: tuple(_network(widths, f"{kind}.{number}.", tensors) for number, widths in enumerate(all_widths))
        for kind, all_widths in record["networks"].items()
    }
    feature_scaler = None
    if "feature_scaler.mean" in tensors:
        feature_scaler = Scaler(tensors["feature_scaler.mean"], tensors["feature_scaler.scale"])
    return Fitted(
        scaler=Scaler(tensors["scaler.mean"], tensors["scaler.scale"]),
        feature_scaler=feature_scaler,
        reward=Reward(
            tensors["reward.weight"], tensors["reward.bias"], networks["reward"], tensors.get("reward.factor")
        ),
        propensities=Propensities(
            tuple(record["fitted"]["propensity_designs_"]),
            tensors["propensity.weight"],
            tensors["propensity.feature_weight"],
            tensors["propensity.bias"],
            networks["propensity"],
            tensors.get("propensity.factor"),
            tuple(record["fitted"].get("after", ())),
            tensors.get("propensity.order"),
        ),
        context=None if record.get("context") is None else _context(record["context"], tensors),
        held_out_nll=record["fitted"]["held_out_nll_"],
        held_out_decision=None,
        training_propensity=None,
        diagnosis=Diagnosis.from_dict(record["diagnosis"]),
        signals=_signals(record),
        candidates=_candidates(tensors),
    )


def _candidates(tensors: Mapping[str, Tensor]) -> dict[str, Reward]:
    """Return the rewards of candidates by name, of which models of earlier versions have none."""
    names = sorted({name.split(".")[1] for name in tensors if name.startswith(CANDIDATE)})
    return {
        name: Reward(tensors[f"{CANDIDATE}{name}.weight"], tensors[f"{CANDIDATE}{name}.bias"], ()) for name in names
    }


def _signals(record: Mapping[str, Any]) -> Signals:
    """Return the signals of a record. Models that were saved before signals had names have them in the settings."""
    if "signals" in record:
        return Signals(**{name: frozen(value) for name, value in record["signals"].items()})
    settings = record["settings"]
    return declare(None, len(record["fitted"]["propensity_designs_"]), settings["polarity"], settings["misclick_rate"])


def _widths(network: Network) -> list[int]:
    """Return the number of inputs, the hidden widths and the number of outputs of a network."""
    layers = [layer for layer in network.layers if isinstance(layer, torch.nn.Linear)]
    return [layers[0].in_features, *(layer.out_features for layer in layers)]


def _network(widths: list[int], prefix: str, tensors: Mapping[str, Tensor]) -> Network:
    """Return the network of these widths whose tensors have names with this prefix."""
    state = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    numbers = sum(value.numel() for value in state.values())
    if len(widths) < 2 or sum(one * other for one, other in pairwise(widths)) > numbers:
        raise ValueError(
            f"networks.{prefix[:-1]}: got the widths {widths}; expected those of its {numbers} numbers in {TENSORS}"
        )
    network = Network(widths[0], widths[1:-1], widths[-1])
    network.load_state_dict(state)
    return network.to(tensors["reward.bias"].device)


LAYER = ("shift", "mix", "weight", "sd", "power", "free")


def _context_tensors(context: Context) -> dict[str, Tensor]:
    """Return all numbers of a context by name."""
    tensors = {f"context.{name}": getattr(context.layer, name) for name in LAYER}
    for name, bins in context.bins.items():
        tensors |= {f"context.{name}.edges": torch.from_numpy(bins.edges)}
        tensors |= {f"context.{name}.means": torch.from_numpy(bins.means)}
    return tensors | {"context.users": context.users, "context.offsets": context.offsets}


def _context(record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Context:
    """Return the context of which a record names the parts that are columns; it is kept on the CPU."""
    own = {name.removeprefix("context."): value.cpu() for name, value in tensors.items() if name.startswith("context.")}
    bins = {name: Bins(own[f"{name}.edges"].numpy(), own[f"{name}.means"].numpy()) for name in record["parts"]}
    return Context(ContextLayer(*(own[name] for name in LAYER)), bins, record["who"], own["users"], own["offsets"])


def _plain(value: Any) -> Any:
    """Return a value as JSON can hold it; a source of random numbers becomes None."""
    if isinstance(value, np.random.RandomState):
        return None
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    if isinstance(value, Mapping) and not all(isinstance(key, str) for key in value):
        return {PAIRS: [[_plain(entry) for entry in pair] for pair in value.items()]}  # the keys of JSON are text
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, (tuple, list)) else value
