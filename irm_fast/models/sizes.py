"""The sizes that a model's configuration asks for, checked before anything is made of them: it may be a stranger's."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import nn

from irm_fast.data.problems import shown

MAX_EXPERTS = 2**21  # of all layers together
ALWAYS_MADE, MAX_BEYOND_FILES = 2**30, 16  # bytes of weights, and times those of the files, that are made
_LAYERS, _POSITIONS = 2**10, 2**31
_LIMITS = {  # by what entries of a configuration are called; each far above that of any model
    r"num_labels": 2**20,
    r"(num|n)_([a-z]+_)*layers?|[a-z]+_layers|depths?": _LAYERS,
    r"([a-z]+_)*vocab_size|vocab_size_[a-z_]+": 2**24,
    r"([a-z]+_)*(heads?|experts?|groups|experts_per_tok)": 2**16,
    r"([a-z]+_)*(hidden|intermediate|embedding|embeddings|embed|ffn|inner|mlp|head|state|kernel)_?(size|sizes|dim|dims)|"
    r"n_embd|n_inner|d_[a-z]+|dim|([a-z]+_)*(rank|head_dim|ffn_dim|hidden_dim|channels)": 2**20,
    r"([a-z]+_)*(positions?|position_embeddings|n_ctx|max_length|seq_len|seq_length|window)": _POSITIONS,
}
_NO_SIZE = "model_max_length"  # of a tokenizer, where 1e30 stands for no limit; no weight has it as a dimension
_SIZES = [(re.compile(pattern), limit) for pattern, limit in _LIMITS.items()]


def check_sizes(config: Mapping[str, Any], where: str) -> None:
    """Check the entries of a configuration that decide how large a model is.

    Args:
        config: What its file holds.
        where: The file, for errors.

    Raises:
        ValueError: An entry is larger than that of any model, with its name.
    """
    layers = experts = 1
    for name, value in _numbers(config):
        last = re.sub(r"\[\d+\]$", "", name).rpartition(".")[2]
        if last == _NO_SIZE:
            continue
        limit = next((limit for pattern, limit in _SIZES if pattern.fullmatch(last)), None)
        least = -1 if limit == _POSITIONS else 0  # which stands for none there
        if limit is not None and not least <= value <= limit:
            raise ValueError(f"{where}: {name}: got {shown(value)}; expected {least} to {limit:,}, as of any model")
        layers = max(layers, int(value)) if limit == _LAYERS else layers
        experts = max(experts, int(value)) if re.fullmatch(r"(num|n)_([a-z]+_)*experts", last) else experts
    if layers * experts > MAX_EXPERTS:
        text = f"got {layers:,} layers of {experts:,} experts; expected at most {MAX_EXPERTS:,} experts together"
        raise ValueError(f"{where}: {text}")


def _numbers(config: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Yield each number of a configuration with its name, those of parts and lists too."""
    if isinstance(config, Mapping):
        for key, value in config.items():
            yield from _numbers(value, f"{name}.{key}" if name else str(key))
    elif isinstance(config, list):
        for number, value in enumerate(config):
            yield from _numbers(value, f"{name}[{number}]")
    elif isinstance(config, (int, float)) and not isinstance(config, bool):
        yield name, config


def check_weights_fit(skeleton: nn.Module, files: Sequence[str], name: str, *, four_bits: bool = False) -> None:
    """Check that the weights of a model fit into the memory of the machine, and are about as many as its files hold.

    Args:
        skeleton: The model, on the meta device.
        files: The files of its weights; none where their sizes are not known.
        name: The folder or hub id of the model.
        four_bits: Whether its weights are of 4 bits.

    Raises:
        ValueError: They do not fit, or are many more.
    """
    parameters = sum(weight.numel() for weight in skeleton.parameters())
    needed = sum(weight.numel() * (0.5 if four_bits else weight.element_size()) for weight in skeleton.parameters())
    held, most = sum(os.path.getsize(file) for file in files if os.path.isfile(file)), machine_memory()
    has = []
    if most is not None and needed > most:
        has.append(f"this machine has {most / 1e9:,.1f} GB of memory")
    if files and needed > ALWAYS_MADE + MAX_BEYOND_FILES * held:
        has.append(f"its files hold {held / 1e9:,.4f} GB")
    if has:
        raise ValueError(
            f"{name}/config.json: its sizes make {parameters:,} parameters, {needed / 1e9:,.1f} GB; "
            f"{' and '.join(has)}; "
            "expected a smaller model, or the hidden_size, vocab_size and num_hidden_layers of its files"
        )


def machine_memory() -> int | None:
    """Return the bytes of memory, with swap, that the machine or its container has; None where that is not known."""
    found = []
    with suppress(OSError, ValueError, AttributeError):
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
        with suppress(OSError):
            swap = re.search(r"SwapTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text())
            found[0] += 1024 * int(swap[1]) if swap else 0
    with suppress(OSError, ValueError):  # "max" where there is no limit
        found.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(found, default=None)
