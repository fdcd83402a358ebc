"""What is found of a program that reads a model, and how one that can be run here is run and compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from irm_fast.data.problems import redacting
from irm_fast.models.foreign_files import loading
from irm_fast.publish.samples import Samples

if TYPE_CHECKING:
    from irm_fast.data.messages import Messages

# Of float32: differences up to this share of the largest reward, or of 1 where all are smaller. Sums in another order
# cost a tenth of it; a second BOS, another cut or a sigmoid move rewards by hundreds of it.
ROUNDING = 1e-5
BY_RULES = "by its rules"


class Reading(NamedTuple):
    """How a program reads a model.

    Attributes:
        consumer: The program, and the way it is used.
        how: Its version, or why it is not run and by what it is judged.
        within: The largest absolute difference to our own score of rows within `max_length`; None if it is not run.
        beyond: Likewise of longer rows.
        note: What else should be known.
        same: Whether it reads the same reward within `max_length`; None if it is not run.
        exact: Whether it should.
        failed: Whether it was run and could not.
    """

    consumer: str
    how: str
    within: float | None = None
    beyond: float | None = None
    note: str = ""
    same: bool | None = None
    exact: bool = True
    failed: bool = False

    @property
    def wrong(self) -> bool:
        """Whether it reads another reward, and should not."""
        return self.same is False and self.exact


class Consumer(NamedTuple):
    """A program that can be run here.

    Attributes:
        name: The program, and the way it is used.
        package: The distribution that has to be installed; "" where it is run by its rules, written here.
        read: Its scores (N,) of conversations, of a model as it loads it.
        note: What else should be known.
        oldest: The first number of the oldest version that can.
        exact: Whether it should give the same number.
        how: What of it runs, with its version as {}.
    """

    name: str
    package: str
    read: Callable[[Any, Sequence[Messages]], np.ndarray]
    note: str = ""
    oldest: int = 0
    exact: bool = True
    how: str = "{}"


def read_by(consumer: Consumer, loaded: Any, samples: Samples, ours: np.ndarray) -> Reading:
    """Run a program, if it is installed, and compare its scores with ours.

    Args:
        consumer: The program.
        loaded: The model as it takes it.
        samples: N conversations.
        ours: Our scores of them, (N,).
    """
    how = BY_RULES
    if consumer.package:
        try:
            found = version(consumer.package)
        except PackageNotFoundError:
            return Reading(consumer.name, "not installed", note=consumer.note, exact=consumer.exact)
        how = consumer.how.format(found)
        if int(found.split(".")[0]) < consumer.oldest:
            how = f"{found}, expected {consumer.oldest}"
            return Reading(consumer.name, how, note=consumer.note, exact=consumer.exact)
    try:
        with loading("could not run"), torch.no_grad():
            difference = np.abs(consumer.read(loaded, samples.conversations) - ours)
            within, beyond = samples.worst(difference)
    except ValueError as error:  # whatever it was: `loading` says it in a line
        kind = type(error.__cause__ or error).__name__
        failure = f"could not run: {kind}" + ("" if redacting() else str(error).removeprefix("could not run"))
        return Reading(consumer.name, how, note=failure[:240], exact=consumer.exact, failed=True)
    same = within is None or within <= ROUNDING * max(1.0, float(np.abs(ours).max()))
    return Reading(consumer.name, how, within, beyond, consumer.note, same, consumer.exact)
