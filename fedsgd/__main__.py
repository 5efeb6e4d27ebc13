"""`python -m fedsgd` is the command `fedsgd`."""

from fedsgd.cli import main

main(prog_name="fedsgd")
