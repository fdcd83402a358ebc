"""The packages that only parts of the package need, and what is said where one of them is not installed.

The core is torch, numpy, safetensors, typer and packaging. Everything else comes with an extra:
`pip install 'irm-fast[train]'`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

EXTRAS = {  # extra of pyproject.toml: the packages that it brings for us, as they are imported
    "embeddings": ("scipy", "sklearn"),
    "import": ("duckdb", "pyarrow"),
    "train": ("accelerate", "jinja2", "pyarrow", "scipy", "sklearn", "tqdm", "transformers", "yaml"),
    "report": ("matplotlib",),
    "hub": ("datasets",),
    "lora": ("peft",),
    "policy": ("trl",),
    "liger": ("liger_kernel",),
}


class MissingPackageError(ModuleNotFoundError):
    """A package is needed that is not installed; the text is one line, which names it and the command that mends it."""


def missing(package: str, extra: str | None = None) -> str | None:
    """Return what is missing and how to install it, or None where the package is installed.

    Args:
        package: A package of `EXTRAS`, as it is imported.
        extra: The extra that serves the caller. By default, and where it does not bring the package, the first that
            does.
    """
    return None if find_spec(package) else _remedy(package, extra)


def need(package: str, what: str, extra: str | None = None) -> None:
    """Refuse work whose package is not installed, before it begins.

    Args:
        package: A package of `EXTRAS`, as it is imported.
        what: What needs it, for the message: an argument or a function.
        extra: As of `missing`.

    Raises:
        MissingPackageError: It is not installed.
    """
    if remedy := missing(package, extra):
        raise MissingPackageError(f"{what}: {remedy}", name=package)


@contextmanager
def needing(what: str, extra: str | None = None) -> Iterator[None]:
    """A context in which an import that fails for want of an optional package says so in one line.

    Args:
        what: What was asked for: a public name or a command.
        extra: As of `missing`.

    Raises:
        MissingPackageError: A package of `EXTRAS` is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        if not any(package in packages for packages in EXTRAS.values()):
            raise
        raise MissingPackageError(f"{what}: {_remedy(package, extra)}", name=package) from None


def _remedy(package: str, extra: str | None) -> str:
    if extra is None or package not in EXTRAS[extra]:
        extra = next(name for name, packages in EXTRAS.items() if package in packages)
    return f"needs the package {package}, which is not installed; pip install 'irm-fast[{extra}]'"
