"""Runs that end in the middle of their parts."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from irm_fast.models import parts


class Interrupted(Exception):
    pass


@contextmanager
def interrupted_after(count: int) -> Iterator[None]:
    """A context in which a run ends once it has written so many parts."""
    write, written = parts.write_part, list[Path]()

    def write_some(path: Path, *arguments: Any) -> None:
        if len(written) == count:
            raise Interrupted
        written.append(path)
        write(path, *arguments)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(parts, "write_part", write_some)
        yield
