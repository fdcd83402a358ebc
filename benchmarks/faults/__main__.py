"""The sweep: `python -m benchmarks.faults`, which prints the table of docs/why/reliability.md.

Each command is killed before each of its file operations, after half of each of its writes, and finds no room on the
disk from each operation on; then it goes on with --resume, and where that is refused, with --overwrite.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from pathlib import Path

from benchmarks.faults.sweep import Server, prepare, reference, stopped


def main() -> None:
    """Print a line for each command and fault, and what went wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1, help="only every so many operations")
    parser.add_argument("--skip", type=int, default=0, help="so many operations first")
    parser.add_argument("--command", action="append", help="only this command; may be repeated")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder))
        commands = prepare(server)
        heads = ("command", "fault", "operations", "tried", "exact", "refused, then overwritten", "stuck", "different")
        print(f"| {' | '.join((*heads, 'left files'))} |\n{'| --- ' * (len(heads) + 1)}|", flush=True)
        for command in commands:
            if chosen.command and command.name not in chosen.command:
                continue
            whole, operations = reference(server, command)
            for fault in ("killed", "torn", "full"):
                numbers = [
                    number
                    for number, operation in enumerate(operations, 1)
                    if fault != "torn" or operation.startswith("write ")
                ][chosen.skip :: chosen.every]
                found = stopped(server, command, fault, numbers, whole, operations)
                count = Counter(one.verdict for one in found)
                cells = [count[kind] for kind in ("exact", "refused", "stuck", "different")]
                left = sum(bool(one.left) for one in found)
                values = (command.name, fault, len(operations), len(found), *cells, left)
                print(f"| {' | '.join(map(str, values))} |", flush=True)
                for one in found:
                    if one.verdict != "exact" or one.line or one.left:
                        operation = one.operation.replace(str(server.place), "")
                        print(
                            f"  {one.verdict} at {one.number} ({operation}): {one.line} {' '.join(one.left)}",
                            flush=True,
                        )
        server.close()


if __name__ == "__main__":
    main()
