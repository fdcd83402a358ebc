"""Files of strangers that other libraries read: quietly, and with errors of one kind and one line."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager

from irm_fast.models.tokens import first_line


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """A context without transformers' load reports and progress bars: what is missing is raised as an error here."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def loading(what: str) -> Iterator[None]:
    """A context in which other libraries read files of strangers: whatever they raise becomes a ValueError of a line.

    Args:
        what: What does not load, and what for.
    """
    try:
        with quiet_transformers():
            yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except pickle.UnpicklingError as error:  # whose own words advise to run it
        why = "its weights are a pickle that holds more than tensors, and is not run; expected safetensors"
        raise ValueError(f"{what}: {why}") from error
    except BaseException as error:  # of many kinds; those of libraries in Rust descend from nothing else
        raise ValueError(f"{what}: {first_line(error) or type(error).__name__}") from error
