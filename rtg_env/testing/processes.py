"""Other processes: a scripted episode is played in fresh ones, with other hash seeds, and compared with this one's.

The child is a plain subprocess rather than a `multiprocessing` one: it imports the module of `make_env` by name and
never the user's main script, so no `if __name__ == "__main__"` is needed; a `make_env` that stands in the main
script cannot be found by it, though. The only place of this project that pickles: what is unpickled was pickled by
this very process, and no file or network is involved.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from typing import Any

from rtg_env.testing.clause import NotApplicable, Unmet
from rtg_env.testing.games import Move, game_of
from rtg_env.text import one_line

_CODE = "from rtg_env.testing.processes import main; main()"
_HASH_SEEDS = ("1", "2", "3")


def through_pickle(value: Any) -> Any:
    """A copy by way of bytes.

    Raises:
        NotApplicable: If it cannot be pickled.
    """
    try:
        return pickle.loads(pickle.dumps(value))  # noqa: S301 - bytes of this process
    except Exception as error:  # noqa: BLE001 - pickling runs the code of others, which may raise anything
        raise NotApplicable(f"it cannot be pickled ({type(error).__name__}: {one_line(str(error))})") from None


def views_elsewhere(make_env: Callable[..., Any] | str, moves: Sequence[Sequence[Move]]) -> list[list[list[Any]]]:
    """What two other processes with two hash seeds see after each of these moves.

    Args:
        make_env: A function that can be imported, or its name.
        moves: One sequence per script.

    Returns:
        Per process and script, the plain views.

    Raises:
        NotApplicable: If the function cannot get there, with the reason.
        Unmet: If the environment fails there.
    """
    try:
        payload = pickle.dumps((make_env, [list(script) for script in moves]))
    except Exception as error:  # noqa: BLE001 - pickling runs the code of others, which may raise anything
        reason = f"make_env cannot reach another process ({one_line(str(error))})"
        raise NotApplicable(f"{reason}; use a function of a module, or its name as 'module:function'") from None
    hash_seeds = [seed for seed in _HASH_SEEDS if seed != os.environ.get("PYTHONHASHSEED")][:2]
    children = [_start(seed) for seed in hash_seeds]
    try:
        return [_answer(child, payload) for child in children]
    finally:
        for child in children:
            child.kill()
            child.communicate()


def main() -> None:
    """What a child does: play the scripts that come by stdin, write what was seen to stdout."""
    with redirect_stdout(sys.stderr):
        answer = _played(sys.stdin.buffer.read())
    sys.stdout.write(json.dumps(answer))


def _start(hash_seed: str) -> subprocess.Popen[bytes]:
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    return subprocess.Popen(
        [sys.executable, "-c", _CODE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": path},
    )


def _answer(child: subprocess.Popen[bytes], payload: bytes) -> list[list[Any]]:
    out, err = child.communicate(payload)
    if child.returncode:
        last = (err.decode(errors="replace").strip().splitlines() or ["nothing"])[-1]
        raise Unmet("the same episode in another process", f"exit code {child.returncode}: {one_line(last)}")
    answer: dict[str, Any] = json.loads(out)
    if "unreadable" in answer:
        raise NotApplicable(
            f"another process cannot find make_env ({one_line(answer['unreadable'])}); move it from the main script to"
            " a module, or give its name as 'module:function'"
        )
    if "failed" in answer:
        raise Unmet("the same episode in another process", one_line(answer["failed"], max_chars=600))
    views: list[list[Any]] = answer["views"]
    return views


def _played(payload: bytes) -> dict[str, Any]:
    from rtg_env.testing.trial import resolve

    try:
        make_env, scripts = pickle.loads(payload)  # noqa: S301 - bytes of the parent
        make_env = resolve(make_env) if isinstance(make_env, str) else make_env
    except Exception as error:  # noqa: BLE001 - unpickling imports the code of others, which may raise anything
        return {"unreadable": f"{type(error).__name__}: {error}"}
    views: list[list[Any]] = []
    try:
        for moves in scripts:
            game = game_of(make_env())
            views.append([])
            for move in moves:
                game.do(move)
                views[-1].append(game.plain())
    except Exception as error:  # noqa: BLE001 - whatever the environment raises is what is reported
        return {"failed": f"{type(error).__name__}: {error}"}
    return {"views": views}
