"""`python -m rtg_env.testing module:make_env` and `python -m rtg_env.testing --judge module:attribute`.

Prints the table of clauses; exit code 0 if nothing failed, 1 if something did, 2 if the call itself was wrong.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from rtg_env.errors import ConfigError, ConformanceError
from rtg_env.testing import Conformance, check_env, check_judge
from rtg_env.testing.trial import resolve
from rtg_env.text import well_formed


def main(arguments: Sequence[str] | None = None) -> int:
    """Check what the command line names.

    Args:
        arguments: Default: those of the process.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(prog="python -m rtg_env.testing", description="Check a text game, or a judge.")
    parser.add_argument("make_env", nargs="?", help="module:function that returns a new environment")
    parser.add_argument("--judge", help="module:attribute, a judge or a class of judges to be made without arguments")
    parser.add_argument("--skip", nargs="+", default=(), metavar="CLAUSE", help="clauses to leave out")
    parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1, 2), help="seeds to be played")
    chosen = parser.parse_args(arguments)
    if (chosen.make_env is None) == (chosen.judge is None):
        parser.error("expected either module:make_env or --judge module:attribute")
    try:
        if chosen.judge is not None:
            report = check_judge(_judge(chosen.judge), skip=chosen.skip)
        else:
            report = check_env(chosen.make_env, skip=chosen.skip, seeds=chosen.seeds)
    except ConfigError as error:
        parser.error(str(error))
    except ConformanceError as error:
        _print(error.report)
        return 1
    _print(report)
    return 0


def _judge(name: str) -> Any:
    found = resolve(name)
    return found() if isinstance(found, type) or not hasattr(found, "judge") else found


def _print(report: Conformance | None) -> None:
    charset = getattr(sys.stdout, "encoding", None) or "utf-8"
    text = well_formed(f"{report}\n")
    sys.stdout.write(text.encode(charset, "backslashreplace").decode(charset))


if __name__ == "__main__":
    sys.exit(main())
