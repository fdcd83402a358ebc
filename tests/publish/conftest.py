"""Models for the tests of what is published: a finished run, three classifiers, and rewards on an encoder."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from irm_fast.data.signals import RewardSpec
from irm_fast.embeddings.embedder import Embedder
from irm_fast.embeddings.estimator import EmbeddingRewardModel
from irm_fast.embeddings.sentence_files import SentenceFiles
from irm_fast.embeddings.text_model import EmbeddedRewardModel
from irm_fast.models.reward_model import ImplicitRewardModel
from irm_fast.publish.card import card_of
from irm_fast.training.config import TrainConfig
from irm_fast.training.run import train_log
from tests.models.saved_bases import KINDS, save_base, save_encoder

HOSTILE = "<script>alert(1)</script> <img src=x onerror=alert(2)> {{ 7 * 7 }} \u202e"


@pytest.fixture(scope="package")
def shown_log(make_log):
    """Rows with users, sessions, times, and responses that would run in a page that does not escape them."""
    log = make_log(160)
    messages = [list(turns) for turns in log.messages]
    for row in range(160):
        messages[row][1] = {"role": "assistant", "content": f"{messages[row][1]['content']} {row} {HOSTILE}"}
    users = [f"user-{i % 20}" for i in range(160)]
    return replace(log, messages=messages, user_ids=users, times=1.7e9 + 3600.0 * np.arange(160))


@pytest.fixture(scope="package")
def finished(shown_log, tiny_model, tmp_path_factory) -> Path:
    """The folder of a run that `train` has finished."""
    config = TrainConfig(
        model=tiny_model,
        output=str(tmp_path_factory.mktemp("run") / "reward_model"),
        epochs=2,
        batch_size=8,
        learning_rate=1e-3,
        progress=False,
        validation_fraction=0.4,
        propensity_design="constant",
    )
    train_log(shown_log, config)
    return Path(config.output)


EXPORTED = RewardSpec("constant", ("copy", "share"), (1, 1), max_length=48)


@pytest.fixture(scope="session")
def classifiers(tmp_path_factory) -> dict[str, Path]:
    """The folders of saved classifiers, one of each kind."""
    folders = {}
    for kind in KINDS:
        folder = tmp_path_factory.mktemp("classifier")
        model = ImplicitRewardModel.from_backbone(save_base(kind, folder / "base"), EXPORTED).eval()
        model.save(folder / "saved", {"training": {"model": str(folder / "base")}}, card_of(model, "saved"))
        folders[kind] = folder / "saved"
    return folders


@pytest.fixture(scope="session", params=KINDS)
def classifier(request, classifiers) -> Path:
    """The folder of a saved classifier, of each kind in turn."""
    return classifiers[request.param]


@pytest.fixture(scope="session")
def with_bos(classifiers) -> Path:
    """The folder of a saved classifier where the kind decides nothing, or where a BOS token may be lost."""
    return classifiers["BOS twice"]


@pytest.fixture(scope="session")
def save_embedded(tmp_path_factory, make_log):
    """A function that fits a reward to embeddings of a model once, and returns the folder that it is saved to."""
    base = save_encoder(tmp_path_factory.mktemp("encoder"))

    @cache
    def save(model=base, hidden_layers=(), files: SentenceFiles | None = None, pooling: str = "auto") -> Path:
        log = make_log(200)
        embedder = Embedder(model, pooling=pooling, max_length=48, files=files)
        vectors, _ = embedder.embed(log.messages)
        estimator = EmbeddingRewardModel(hidden_layers=hidden_layers, random_state=0, max_epochs=20, batch_size=64)
        estimator.fit(vectors.numpy(), log.feedback)
        folder = tmp_path_factory.mktemp("embedded") / "saved"
        embedded = EmbeddedRewardModel(estimator, EXPORTED, embedder.source)
        embedded.save(folder, None, card_of(embedded, "saved"))
        return folder

    return save
