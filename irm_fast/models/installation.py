"""Whether irm-fast is installed so that it works here, and what it will use: the findings of `irm-fast doctor`."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, metadata
from typing import Literal

from irm_fast.common.extras import missing
from irm_fast.models.machine import DEVELOPERS, gpus, installed, processor
from irm_fast.models.sizes import machine_memory
from irm_fast.models.threads import cores

Status = Literal["ok", "note", "broken"]
_IMPORTED_AS = {"scikit-learn": "sklearn", "pyyaml": "yaml"}  # under other names than the packages have
_LITTLE = 1e9  # bytes of disk: texts of a log beyond 256 MiB lie in a temporary file
_AGREES = 1e-4  # relative, between the loss of a backend and its definition


@dataclass(frozen=True)
class Finding:
    """What a check has found.

    Attributes:
        area: What was checked, such as "packages".
        name: The part of it, such as "torch".
        status: "ok", "note" for what works and could be better, or "broken".
        said: What was found.
        remedy: What to do about it; empty where there is nothing to do.
    """

    area: str
    name: str
    status: Status
    said: str
    remedy: str = ""


Findings = Iterator[Finding]


def examine() -> list[Finding]:
    """Look at the whole installation; a check that fails in a way of its own is a finding too.

    It imports all that irm-fast requires, and computes a small loss on each kind of device: some seconds.
    """
    found = [*_check_python(), *_check_packages()]
    if any(one.name == "torch" and one.status == "broken" for one in found):
        return found
    checks = (_check_devices, _check_losses, _check_attention, _check_compilers, _check_extras, _check_resources)
    for check in checks:
        found += _guarded(check)
    return found


def _guarded(check: Callable[[], Findings]) -> list[Finding]:
    """The findings of a check up to the error that it ends with, if it does, which is one of them."""
    found = []
    try:
        for one in check():
            found.append(one)
    except Exception as error:  # whatever the libraries of a machine may raise
        area = check.__name__.removeprefix("_check_")
        text = str(error).strip().partition("\n")[0]
        remedy = "report it with the whole output of irm-fast doctor"
        found.append(Finding(area, "check", "broken", f"{type(error).__name__}: {text}", remedy))
    return found


def _check_python() -> Findings:
    from packaging.specifiers import SpecifierSet

    here = f"{platform.python_version()}, {sys.executable}"
    try:
        about = metadata("irm-fast")
    except PackageNotFoundError:
        yield Finding("python", "irm-fast", "broken", "not installed", "in its clone: make install, or pip install .")
        return
    yield Finding("python", "irm-fast", "ok", about["Version"])
    wanted = about["Requires-Python"] or ""
    fits = SpecifierSet(wanted).contains(platform.python_version(), prereleases=True)
    remedy = "" if fits else f"a virtual environment with Python {wanted}"
    yield Finding("python", "python", "ok" if fits else "broken", f"{here}; supported {wanted}", remedy)


def _requirements(extra: str | None) -> dict[str, str]:
    """The packages that irm-fast, or one of its extras alone, requires on this system, and their ranges."""
    from packaging.requirements import Requirement

    try:
        texts = metadata("irm-fast").get_all("Requires-Dist") or []
    except PackageNotFoundError:
        return {}
    found = {}
    for requirement in map(Requirement, texts):
        marker, name = requirement.marker, requirement.name.lower()
        always = marker is None or marker.evaluate({"extra": ""})
        wanted = always if extra is None else not always and marker is not None and marker.evaluate({"extra": extra})
        if wanted and name != "irm-fast":
            found[name] = str(requirement.specifier)
    return found


def _check_packages() -> Findings:
    """What is required; and of the extras that most commands take, which are said below, what cannot be imported."""
    core = _requirements(None)
    for name, wanted in core.items():
        yield _package(name, wanted)
    for name, wanted in (_requirements("train") | _requirements("embeddings")).items():
        if name not in core and not _fits(name, wanted)[1] and (found := _package(name, wanted)).status == "broken":
            yield found


def _fits(name: str, wanted: str) -> tuple[str, str]:
    """The version of a package that is installed, and what is wrong with it, if anything, for a range of versions."""
    from packaging.specifiers import SpecifierSet

    here = installed(name)
    if here is None:
        return "", f"is not installed; supported {wanted or 'any'}"
    fits = SpecifierSet(wanted).contains(here, prereleases=True)
    return here, "" if fits else f"{here}; supported {wanted}"


def _package(name: str, wanted: str) -> Finding:
    """Whether a package is there, within its range, and can be imported."""
    here, wrong = _fits(name, wanted)
    if wrong:
        return Finding("packages", name, "broken", wrong, f"pip install '{name}{wanted}'")
    try:
        import_module(_IMPORTED_AS.get(name, name))
    except Exception as error:  # a library that is missing, of another version, or compiled for another processor
        text = str(error).strip().partition("\n")[0]
        again = f"pip install --force-reinstall '{name}{wanted}'"
        return Finding("packages", name, "broken", f"{here} cannot be imported: {text}", again)
    return Finding("packages", name, "ok", f"{here}; supported {wanted or 'any'}")


def _check_devices() -> Findings:
    import torch

    memory = machine_memory()
    size = "" if memory is None else f", {memory / 1e9:.1f} GB of memory"
    yield Finding("devices", "cpu", "ok", f"{processor()}, {cores()} cores{size}")
    for number, gpu in enumerate(gpus()):
        sizes = f"{gpu['memory'] / 1e9:.1f} GB of memory, {gpu['free'] / 1e9:.1f} free"
        precision = "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no bfloat16"
        said = f"{gpu['name']}, {sizes}, compute capability {gpu['capability']}, {precision}"
        yield Finding("devices", f"cuda:{number}", "ok", said)
    if not torch.cuda.is_available():
        built = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is built without CUDA"
        yield Finding("devices", "gpu", "note", f"none that torch sees; {built}")


def _device_types() -> tuple[str, ...]:
    import torch

    return ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)


def _check_losses() -> Findings:
    """The backend of each kind of device, with the reason, tried on a few rows; and the others."""
    from irm_fast.losses.dispatch import backends, default_backend

    states = backends()
    for kind in _device_types():
        name = default_backend(kind)
        if states[name] != "available":
            remedy = "pip install --upgrade triton, of the version that torch wants"
            yield Finding("loss", kind, "broken", f"{name}: {states[name]}", remedy)
            continue
        difference = _difference_from_definition(kind)
        said = f"{name}{_kernel() if name == 'cpu' else ''}: {_why_backend(kind, name, states)}"
        if difference < _AGREES:
            slow = kind == "cpu" and name == "reference"
            remedy = "a C++ compiler, then install irm-fast again (in its sources: make install)" if slow else ""
            yield Finding("loss", kind, "note" if slow else "ok", f"{said}; agrees with the definition", remedy)
        else:
            remedy = "install irm-fast again; if that does not help, report it"
            yield Finding("loss", kind, "broken", f"{said}; differs from the definition by {difference:.1e}", remedy)
    for name in sorted(states.keys() - {default_backend(kind) for kind in _device_types()}):
        yield Finding("loss", f"backend {name}", "ok" if name == "reference" else "note", states[name])
    yield Finding("loss", "triton", "ok" if installed("triton") else "note", installed("triton") or "not installed")


def _kernel() -> str:
    """The instruction set of the C++ kernel, in brackets."""
    from irm_fast.kernels.cpu.library import INSTRUCTION_SET

    return f" (C++, {INSTRUCTION_SET})"


def _why_backend(kind: str, name: str, states: dict[str, str]) -> str:
    """Why a backend is the one of a kind of device."""
    if kind == "cuda":
        return "the fused kernels for GPUs"
    if name == "cpu":
        chosen = "IRM_FAST_ISA asks for it" if os.environ.get("IRM_FAST_ISA") else "the best that this processor has"
        return f"the kernel is built, and the instruction set is {chosen}"
    return f"slower, since the C++ kernel is not available: {states['cpu']}"


def _difference_from_definition(kind: str) -> float:
    """The greatest relative difference, of a loss and its gradients, between the backend of a device and float64."""
    import torch

    from irm_fast.losses.implicit import implicit_rm_loss

    torch_random = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 300, generator=torch_random)
    feedback = torch.randint(-1, 2, (300, 2), generator=torch_random)
    results = []
    for dtype, device in ((torch.float32, kind), (torch.float64, "cpu")):
        given = logits.to(device, dtype).requires_grad_()
        loss = implicit_rm_loss(given[0], given[1:].T, feedback.to(device))
        (gradient,) = torch.autograd.grad(loss, given)
        results.append((loss.detach().double().cpu(), gradient.double().cpu()))
    pairs = zip(*results, strict=True)
    return max(float((one - truth).abs().max() / truth.abs().max()) for one, truth in pairs)


def _check_attention() -> Findings:
    """The attention that a plain decoder, such as Llama, would run with; models of other kinds may take another."""
    if missing("transformers"):  # as the extras say
        return
    import torch
    from transformers import LlamaConfig

    from irm_fast.models import ATTENTIONS
    from irm_fast.models.attention import obstacle
    from irm_fast.models.backbone import skeleton_of
    from irm_fast.models.passes import resolve_precision

    config = LlamaConfig(
        vocab_size=256, hidden_size=256, intermediate_size=256, num_hidden_layers=1, num_attention_heads=2
    )
    model = skeleton_of(config)
    for kind in _device_types():
        device = torch.device(kind)
        precision = resolve_precision("auto", device)
        dtype = getattr(torch, precision)
        reasons: dict[str, str] = {}
        for name in ATTENTIONS[1:]:
            if (reason := obstacle(name, model, device, dtype)) is None:
                not_taken = "".join(f"; not {other}: {why}" for other, why in reasons.items())
                yield Finding("attention", kind, "ok", f"{name}, in {precision}, for a model such as Llama{not_taken}")
                break
            reasons[name] = reason


def _check_compilers() -> Findings:
    """The compiler of C++ that an installation would use, and that of C that Triton needs for its launchers."""
    found = _compiler("CXX", ("c++", "g++", "clang++"))
    without = "none found; it builds the kernel of losses on CPUs, and torch.compile needs it there"
    yield Finding("compiler", "C++", "ok" if found else "note", found or without, "" if found else "g++ or clang++")
    if "cuda" in _device_types():
        found = _compiler("CC", ("gcc", "clang", "cc"))
        status: Status = "ok" if found else "broken"
        yield Finding("compiler", "C", status, found or "none found; Triton needs it", "" if found else "gcc or clang")


def _compiler(variable: str, names: tuple[str, ...]) -> str | None:
    """The first of some compilers that is there, with what it says of its version."""
    for name in filter(None, (os.environ.get(variable), *names)):
        if path := shutil.which(name.split()[0]):
            try:
                said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=True)
            except (OSError, subprocess.SubprocessError):
                continue
            return f"{path}: {said.stdout.partition(chr(10))[0]}"
    return None


GPU_ONLY = ("flash", "liger")  # extras of no use without one


def _check_extras() -> Findings:
    import torch

    try:
        names = metadata("irm-fast").get_all("Provides-Extra") or []
    except PackageNotFoundError:
        return
    for extra in sorted(set(names) - set(DEVELOPERS)):
        found = {name: _fits(name, wanted) for name, wanted in _requirements(extra).items()}
        whole = not any(wrong for _, wrong in found.values())
        said = ", ".join(f"{name} {wrong or here}" for name, (here, wrong) in found.items())
        if found:
            useless = extra in GPU_ONLY and not torch.cuda.is_available()
            remedy = "" if whole or useless else f"pip install 'irm-fast[{extra}]'"
            yield Finding("extras", extra, "ok" if whole else "note", said, remedy)


def _check_resources() -> Findings:
    """Threads, and the disk that large logs are kept on while they are read."""
    import torch

    threads, here = torch.get_num_threads(), cores()
    set_by = [f"{name}={os.environ[name]}" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if name in os.environ]
    said = ", ".join([f"{threads} of torch, {here} cores", *set_by])
    many = threads > here
    remedy = "unset OMP_NUM_THREADS, or lower it" if many else ""
    yield Finding("resources", "threads", "note" if many else "ok", said, remedy)
    try:
        folder = tempfile.gettempdir()
    except FileNotFoundError as error:
        yield Finding("resources", "TMPDIR", "broken", str(error), "TMPDIR=FOLDER, one that can be written to")
        return
    free = shutil.disk_usage(folder).free
    status: Status = "ok" if free > _LITTLE else "note"
    remedy = "" if free > _LITTLE else "TMPDIR=FOLDER on a larger disk, for logs of more than 256 MiB of text"
    yield Finding("resources", "TMPDIR", status, f"{folder}, {free / 1e9:.1f} GB free", remedy)
