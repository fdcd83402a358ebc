"""`python -m irm_fast`."""

from irm_fast.cli.commands import main

main()
