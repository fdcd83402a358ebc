"""A command of `irm-fast` as one of several processes runs it; what it prints goes to files of each."""

import contextlib
import os
from pathlib import Path


def main(output: str, *arguments: str) -> None:
    """Run the command of these arguments; standard output and errors go to `output`.RANK and `output`.RANK.errors.

    The exit code of the command, if it is not 0, is written to the second.
    """
    from irm_fast.cli.commands import app

    path = f"{output}.{os.environ.get('RANK', 0)}"
    with Path(path).open("w") as said, Path(f"{path}.errors").open("w") as errors:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(errors):
            code = app(list(arguments), standalone_mode=False)
        if code:
            errors.write(f"exit code {code}\n")
