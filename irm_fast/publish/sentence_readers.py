"""Programs that read a reward on the embeddings of an encoder, once it is a model of sentence-transformers."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import load_file

from irm_fast.embeddings.embedder import Embedder, plain_text
from irm_fast.embeddings.sentence_files import read_sentence_files
from irm_fast.publish.readings import Consumer

if TYPE_CHECKING:
    from irm_fast.data.messages import Messages


def embedder_of(folder: Path) -> Embedder:
    """The encoder of an export, as its files say that it embeds.

    Args:
        folder: The folder of the export.

    Raises:
        ValueError: A file of it is damaged.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of its linear layers, which come after it
        files = read_sentence_files(str(folder))
    return Embedder(str(folder), max_length=files.max_length or 512, precision="float32", files=files)


def by_files(folder: Path, rows: Sequence[Messages]) -> np.ndarray:
    """The rewards (N,) that the files of an export stand for: our own embeddings, and then its linear layers.

    Args:
        folder: The folder of the export.
        rows: N conversations.

    Raises:
        ValueError: A file of it is damaged.
    """
    values, _ = embedder_of(folder).embed(rows)
    modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    for path in (folder / module["path"] for module in modules if module["type"].endswith(".Dense")):
        layer = load_file(path / "model.safetensors")
        values = values @ layer["linear.weight"].T + layer["linear.bias"]
        told = json.loads((path / "config.json").read_text(encoding="utf-8"))
        if told["activation_function"].endswith(".ReLU"):
            values = torch.relu(values)
    found: np.ndarray = values[:, 0].numpy()
    return found


def _sentence_transformer(folder: Path, rows: Sequence[Messages]) -> np.ndarray:
    from sentence_transformers import SentenceTransformer

    reader = SentenceTransformer(str(folder), device="cpu")
    found: np.ndarray = reader.encode([plain_text(row) for row in rows], show_progress_bar=False)[:, 0]
    return found


SENTENCE_TRANSFORMER = Consumer(
    "sentence-transformers", "sentence-transformers", _sentence_transformer, "turns as text, `Role: content`"
)
BY_FILES = Consumer("the export's files", "", by_files, "read by our own code")
