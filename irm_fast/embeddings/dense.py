"""A reward on embeddings as linear layers with ReLU between them: the same numbers, without a scaler or folds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from irm_fast.embeddings.fitted import Fitted

Layer = tuple[np.ndarray, np.ndarray]  # a weight (outputs, inputs) and a bias (outputs,), float64


def dense_layers(fitted: Fitted) -> list[Layer]:
    """The layers that make of an embedding its reward logit, of which all but the last are followed by ReLU.

    The scaler goes into the first layer, and the networks of the folds into one of their joint width.

    Args:
        fitted: A fit.
    """
    reward = fitted.reward
    mean, scale = _array(fitted.scaler.mean), _array(fitted.scaler.scale)
    linear = (_array(reward.weight)[None], _array(reward.bias)[None])
    networks = [
        [(_array(layer.weight), _array(layer.bias)) for layer in network.layers if isinstance(layer, torch.nn.Linear)]
        for network in reward.networks
    ]
    layers = _beside(networks, linear) if networks else [linear]
    (weight, bias), *rest = layers
    weight = weight / scale  # of constant features it is infinite
    return [(weight, bias - weight @ mean), *rest]


def _beside(networks: list[list[Layer]], linear: Layer) -> list[Layer]:
    """Networks of one shape and a linear term, which ReLU lets through as x = relu(x) - relu(-x), in one network."""
    (slope, constant), count = linear, len(networks)
    first = [network[0] for network in networks]
    layers = [
        (
            np.concatenate([*(weight for weight, _ in first), slope, -slope]),
            np.concatenate([*(bias for _, bias in first), np.zeros(2)]),
        )
    ]
    for number in range(1, len(networks[0]) - 1):
        blocks = [*(network[number][0] for network in networks), np.eye(2)]
        layers.append((_diagonal(blocks), np.concatenate([*(net[number][1] for net in networks), np.zeros(2)])))
    last = [network[-1] for network in networks]
    weight = np.concatenate([*(weight / count for weight, _ in last), [[1.0, -1.0]]], axis=1)
    return [*layers, (weight, sum(bias for _, bias in last) / count + constant)]


def _diagonal(blocks: list[np.ndarray]) -> np.ndarray:
    """A matrix with blocks along its diagonal, and zero elsewhere."""
    whole = np.zeros((sum(len(block) for block in blocks), sum(block.shape[1] for block in blocks)))
    row = column = 0
    for block in blocks:
        height, width = block.shape
        whole[row : row + height, column : column + width] = block
        row, column = row + height, column + width
    return whole


def _array(values: torch.Tensor) -> np.ndarray:
    array: np.ndarray = values.detach().double().cpu().numpy()
    return array
