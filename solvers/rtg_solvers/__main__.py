"""`python -m rtg_solvers` is `rtg`."""

from rtg_solvers.main import main

main()
