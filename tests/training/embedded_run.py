"""A training on embeddings in small blocks, as each process of a torchrun does it."""

from irm_fast.embeddings import blocks, inputs
from irm_fast.training.config import load_config
from irm_fast.training.on_embeddings import train_on_embeddings

BLOCK = 64


def main(data: str, embeddings: str, output: str) -> None:
    blocks.ROWS, inputs.HELD = BLOCK, 0
    settings = {"data": data, "embeddings": embeddings, "output": output, "hidden_layers": "linear"}
    train_on_embeddings(load_config(None, **settings))
