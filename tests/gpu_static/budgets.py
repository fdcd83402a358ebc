"""The table of what each kernel takes, as compiled: budgets.json.

    python -m tests.gpu_static.budgets --write            compile everything, write the table
    python -m tests.gpu_static.budgets --write linear     the same for cases whose names contain a text
    python -m tests.gpu_static.budgets sm_90 "loss K=1"   print the records of some cases as JSON
    python -m tests.gpu_static.budgets sm_90 --quick      likewise of those that the tests compile by default

A record is one launch of a step on many rows:

    rows            rows of a tile; what follows is for one full tile, of one warp
    warps           warps that work on those rows, in all programs
    instructions    warp instructions; of these shuffles, barriers, mufu (approximate functions), tensor (products)
    per_32_rows     warp instructions of all warps for 32 rows
    loads, stores   instructions by width in bits, of global memory
    bytes           bytes of a row in the arguments that have a row for every row
    registers, stack (bytes that spilled), shared (bytes), occupancy (warps that a processor holds)

For AMD GPUs: vgprs, spills, stack, shared. Counts hold for one version of Triton, whose ptxas is part of it.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections import Counter
from math import ceil, prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

TABLE = Path(__file__).with_name("budgets.json")
ROWS = 2**13
# Compiled for these targets: every case for the first, some for the others.
TARGETS = ("sm_90", "sm_80", "sm_100", "gfx942")
SOME = re.compile(r"loss K=1 float32|loss K=3 float16, e|linear K=[14] H=4096 bfl|linear K=1 H=16384|pointwise float32")
# What the tests compile by default: a case of every kernel and of every form of the arithmetic.
QUICK = {"sm_90": re.compile(
    r"loss K=1 (float32|bfloat16)$|loss K=[234] float32($|, disp)|loss K=3 float16, e|linear K=[14] H=4096 bfl|"
    r"linear K=3 H=1000|linear K=1 H=1000|linear K=2 H=1024|linear K=16 H=1024 float16|pointwise"
)}  # fmt: skip
QUICK |= dict.fromkeys(TARGETS[1:], re.compile(r"loss K=1 float32|linear K=1 H=4096 bfl|pointwise float32"))
WARPS = {"sm_80": 64, "sm_89": 48, "sm_90": 64, "sm_100": 64}  # that a processor holds
REGISTERS = 65536  # likewise; and half as many programs as warps
SHARED = {"sm_80": 167936, "sm_89": 102400, "sm_90": 233472, "sm_100": 233472}  # bytes; each program takes 1,024 more
Record = dict[str, Any]


def records(target: str, part: str = "") -> dict[str, list[Record]]:
    """The records of the cases whose name contains `part` (see `chosen`), compiled for the target."""
    return {name: step_records(target, name) for name in chosen(target, part)}


def chosen(target: str, part: str = "") -> list[str]:
    """Cases for the target whose name contains `part`, or, for --quick, those of `QUICK`."""
    from tests.gpu_static.cases import CASES

    if part == "--quick":
        return [name for name in CASES if QUICK[target].match(name)]
    return [name for name in CASES if part in name and (target not in TARGETS[1:] or SOME.match(name))]


def step_records(target: str, name: str) -> list[Record]:
    """One record for each launch of the step."""
    from tests.gpu_static.cases import CASES
    from tests.gpu_static.launches import Launch, launching

    found: list[Record] = []

    def run(launch: Launch) -> None:
        found.append(nvidia_record(launch, target) if "cubin" in launch.kernel.files else amd_record(launch))

    case = CASES[name]
    with launching(target, run):
        case.step(case.inputs(1).grown(ROWS), "triton")
    return found


def nvidia_record(launch: Any, target: str) -> Record:
    from tests.gpu_static.sass import Code, width

    code, constants, warps = Code(launch.kernel.binary), launch.kernel.constants, launch.kernel.metadata.num_warps
    rows = constants["BLOCK_N"] * constants.get("REPEAT", 1)
    pieces = ceil(constants["H"] / constants["BLOCK_H"]) if "H" in constants else 1
    spread = pieces if pieces > 1 and pieces in launch.grid else 1  # programs that share rows, each with its columns
    inside = pieces if pieces > spread else constants.get("M", 1)  # how often a loop inside of a tile runs
    loops = prod(launch.grid) * rows < ROWS * spread
    counts = code.tile(loops, inside)
    number = sum(counts.values())

    def of(*names: str) -> int:
        return sum(n for name, n in counts.items() if name.startswith(names))

    def widths(name: str) -> dict[str, int]:
        found = Counter({str(width(x)): 0 for x in counts if x.startswith(name)})
        for x, n in counts.items():
            found[str(width(x))] += n if x.startswith(name) else 0
        return {k: found[k] for k in sorted(found, key=int) if found[k]}

    return {
        "kernel": launch.kernel.name,
        "rows": rows,
        "warps": warps * spread,
        "instructions": number,
        "shuffles": of("SHFL"),
        "barriers": of("BAR"),
        "mufu": of("MUFU"),
        "tensor": of("HMMA", "HGMMA", "UTCHMMA", "UTCQMMA", "IMMA"),
        "per_32_rows": round(number * warps * spread * 32 / rows),
        "loads": widths("LDG"),
        "stores": widths("STG"),
        "bytes": bytes_of_a_row(launch),
        "registers": code.registers,
        "stack": code.stack,
        "shared": launch.kernel.metadata.shared,
        "occupancy": occupancy(target, code.registers, launch.kernel.metadata.shared, warps),
    }


def amd_record(launch: Any) -> Record:
    text = launch.kernel.files["amdgcn"].read_text()

    def value(name: str) -> int:
        return int(re.search(rf"\.{name}:\s+(\d+)", text)[1])  # type: ignore[index]

    names = {"vgprs": "vgpr_count", "spills": "vgpr_spill_count", "stack": "private_segment_fixed_size"}
    numbers = {name: value(label) for name, label in names.items()}
    return {"kernel": launch.kernel.name, **numbers, "shared": launch.kernel.metadata.shared}


def bytes_of_a_row(launch: Any) -> int:
    """Bytes of one row in all arguments that have one for every row."""
    tensors = [x for x in launch.tensors.values() if x.dim() and len(x) == ROWS]
    return sum(x.element_size() * x[:1].numel() for x in tensors)


def occupancy(target: str, registers: int, shared: int, warps: int) -> int:
    """Warps that a processor holds at a time."""
    of_a_warp = 256 * ceil(32 * registers / 256)
    programs = min(
        WARPS[target] // 2, WARPS[target] // warps, REGISTERS // (of_a_warp * warps), SHARED[target] // (shared + 1024)
    )
    return programs * warps


def main(arguments: list[str]) -> None:
    os.environ.pop("TRITON_INTERPRET", None)
    with TemporaryDirectory() as folder:
        os.environ.setdefault("TRITON_CACHE_DIR", folder)
        if arguments[:1] == ["--write"]:
            write(*arguments[1:])
        else:
            print(json.dumps(records(*arguments)))


def write(part: str = "") -> None:
    """Compile the cases whose name contains `part`, and write the table with what is new of them."""
    import triton

    from tests.gpu_static.cases import CASES

    old = json.loads(TABLE.read_text()) if TABLE.exists() and part else {}
    if part and old.get("triton") != triton.__version__:
        raise SystemExit(f"the table is of Triton {old.get('triton')}, this is {triton.__version__}: write all of it")
    table: dict[str, Any] = {"triton": triton.__version__}
    for target in TARGETS:
        found = old.get(target, {}) | records(target, part)
        table[target] = {name: found[name] for name in CASES if name in found}
    TABLE.write_text(_pretty(table))


def _pretty(table: dict[str, Any]) -> str:
    """JSON with one line a record."""
    targets = []
    for target in TARGETS:
        cases = []
        for name, found in table[target].items():
            lines = ",\n".join(f"      {json.dumps(record)}" for record in found)
            cases.append(f"    {json.dumps(name)}: [\n{lines}\n    ]")
        targets.append(f"  {json.dumps(target)}: {{\n" + ",\n".join(cases) + "\n  }")
    return f'{{\n  "triton": {json.dumps(table["triton"])},\n' + ",\n".join(targets) + "\n}\n"


if __name__ == "__main__":
    main(sys.argv[1:])
