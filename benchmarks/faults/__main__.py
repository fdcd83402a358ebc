"""The sweep: `python -m benchmarks.faults`, which prints the table of docs/why/reliability.md.

Each command is killed before each of its file operations, after half of each of its writes, and finds no room on the
disk from each operation on; then it goes on with --resume, and where that is refused, with --overwrite. With --moments
it is killed at so many random moments instead.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.faults.sweep import Command, Outcome, Server, killed, prepare, reference, stopped

FAULTS = ("killed", "torn", "full")


def main() -> None:
    """Print a line for each command and fault, and what went wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1, help="only every so many operations")
    parser.add_argument("--skip", type=int, default=0, help="so many operations first")
    parser.add_argument("--command", action="append", help="only this command; may be repeated")
    parser.add_argument("--fault", action="append", choices=FAULTS, help="only this fault; may be repeated")
    parser.add_argument("--moments", type=int, default=0, help="kill each command at so many random moments instead")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    chosen = parser.parse_args()
    draw = random.Random(chosen.seed)
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder))
        commands = prepare(server)
        heads = ("command", "fault", "operations", "tried", "exact", "refused, then overwritten", "stuck", "different")
        print(f"| {' | '.join((*heads, 'left files'))} |\n{'| --- ' * (len(heads) + 1)}|", flush=True)
        for command in commands:
            if chosen.command and command.name not in chosen.command:
                continue
            begun = time.monotonic()
            whole, operations = reference(server, command)
            seconds = (time.monotonic() - begun) / 2
            if chosen.moments:
                moments = [draw.uniform(0, seconds) for _ in range(chosen.moments)]
                _print(server, command, "moment", operations, killed(server, command, moments, whole))
                continue
            for fault in chosen.fault or FAULTS:
                numbers = [
                    number
                    for number, operation in enumerate(operations, 1)
                    if fault != "torn" or operation.startswith("write ")
                ][chosen.skip :: chosen.every]
                _print(server, command, fault, operations, stopped(server, command, fault, numbers, whole))
        server.close()


def _print(server: Server, command: Command, fault: str, operations: Sequence[str], found: Iterable[Outcome]) -> None:
    """Print a line for each stop that was not simply exact, as it comes, and a row of the table."""
    count = Counter[str]()
    for one in found:
        count.update([one.verdict, "left"] if one.left else [one.verdict])
        if one.verdict != "exact" or one.line or one.left:
            operation = one.operation.replace(str(server.place), "")
            print(f"  {one.verdict} at {one.number} ({operation}): {one.line} {' '.join(one.left)}", flush=True)
    cells = [count[kind] for kind in ("exact", "refused", "stuck", "different", "left")]
    row = (command.name, fault, len(operations), sum(cells[:-1]), *cells)
    print(f"| {' | '.join(map(str, row))} |", flush=True)


if __name__ == "__main__":
    main()
