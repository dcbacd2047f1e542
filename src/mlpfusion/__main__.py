"""`python -m mlpfusion` is the command line."""

from mlpfusion.cli import main

main()
