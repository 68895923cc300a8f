"""``python -m asyncmig``."""

from asyncmig.cli.main import main

main()
