"""What this machine is: versions, processor, GPUs, memory, threads. Records of runs and `irm-fast doctor` hold it."""

from __future__ import annotations

import os
import platform
import re
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from irm_fast.models.sizes import machine_memory
from irm_fast.models.threads import cores

DEVELOPERS = ("test", "bench", "docs", "dev")  # extras that are for who changes the package


@cache  # a run asks for some twenty of them, and each is a file to read
def installed(package: str) -> str | None:
    """Return the version of a package that is installed, or None if it is not."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def required_packages() -> list[str]:
    """Return the names of the packages that a result may come from: all that irm-fast or an extra for users requires.

    There are none if it is not installed.
    """
    try:
        texts = requires("irm-fast") or []
    except PackageNotFoundError:
        return []
    extras = [re.search(r"extra == ['\"]([\w-]+)", text) for text in texts]
    used = [text for text, extra in zip(texts, extras, strict=True) if not extra or extra[1] not in DEVELOPERS]
    names = [re.split(r"[^\w.-]", text, maxsplit=1)[0] for text in (*used, "triton")]  # which torch brings
    return sorted({*names} - {"irm-fast"})


def processor() -> str:
    """Return the name of the processor, or its architecture where the system does not say more."""
    with suppress(OSError):
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text(errors="replace"))
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()


def gpus() -> list[dict[str, Any]]:
    """Return of each GPU its name, the bytes of its memory and of what is free of it, and its compute capability."""
    import torch

    found = []
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        capability = ".".join(map(str, torch.cuda.get_device_capability(number)))
        name = torch.cuda.get_device_name(number)
        found.append({"name": name, "memory": total, "free": free, "capability": capability})
    return found


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a result may come from, as far as they are installed."""
    found = {"python": platform.python_version()}
    return found | {name: here for name in required_packages() if (here := installed(name))}


def describe_machine() -> dict[str, Any]:
    """Return what a result may depend on beside settings and versions: system, processor, GPUs, threads.

    All of it is plain values, as JSON has them.
    """
    import torch

    return {
        "system": platform.platform(),
        "processor": processor(),
        "cores": cores(),
        "memory": machine_memory(),
        "gpus": [{key: gpu[key] for key in ("name", "memory", "capability")} for gpu in gpus()],
        "cuda": torch.version.cuda,
        "threads": torch.get_num_threads(),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "environment": {name: os.environ[name] for name in ("OMP_NUM_THREADS", "IRM_FAST_ISA") if name in os.environ},
    }
