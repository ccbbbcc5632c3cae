"""`python -m crayon.cli`."""

from crayon.cli.main import main

main()
