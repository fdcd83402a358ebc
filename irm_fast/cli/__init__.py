"""The command line."""

import sys


def main() -> None:
    """The `irm-fast` program. Its version is said at once, without the imports of the commands."""
    if sys.argv[1:] == ["--version"]:
        from irm_fast import __version__

        sys.stdout.write(f"irm-fast {__version__}\n")
        return
    from irm_fast.cli import commands

    commands.main()
