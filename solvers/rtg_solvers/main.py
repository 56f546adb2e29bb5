"""Entry point of `rtg`: says which extra is missing instead of failing on an import."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line."""
    try:
        from rtg_solvers.cli import run
    except ImportError as error:
        sys.stderr.write(missing_package(error))
        raise SystemExit(1) from None
    raise SystemExit(run())


def missing_package(error: ImportError) -> str:
    """What to say when a package that a command needs is not installed."""
    return (
        f"rtg: expected the package {error.name!r} to be installed, it is not; "
        'install what the command line needs, in your clone: pip install -c constraints.txt ".[all]"\n'
    )
