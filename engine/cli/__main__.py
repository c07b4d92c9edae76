"""`python -m engine.cli`: the command `rlx` where it is not on the path."""

from engine.cli.app import main

main()
