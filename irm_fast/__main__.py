"""`python -m irm_fast`."""

from irm_fast.cli import main

main()
