"""Turn a finished run into a committable result: numbers and hashes, no text.

    python benchmarks/summarise.py runs/NAME benchmarks/results/NAME.json

The hash of the dialogues lets a repeat of the run say whether it played the same ones.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import sqlite3
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rtg_agents.population import read_member
from rtg_env.transcripts import TranscriptStore
from rtg_solvers.evaluation.run import read_evaluation
from rtg_solvers.evaluation.seas_run import stored_seas_evaluation
from rtg_solvers.mart_rounds import selected_rounds
from rtg_solvers.records import to_record
from rtg_solvers.result import to_json
from rtg_solvers.run import read_goals, read_settings
from rtg_solvers.session import read_result


def main() -> None:
    """Read one run, write one JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--commit", default="", help="commit that the run was made with; default: HEAD")
    options = parser.parse_args()
    found = read_result(options.run.resolve())
    if found is None:
        parser.error(f"expected a finished run, {options.run} is not finished; repeat its rtg solve command")
    record: dict[str, Any] = {
        "commit": options.commit or head(),
        "settings": read_settings(options.run),
        "hardware": hardware(),
        "result": to_json(found),
        "evaluation": evaluation(options.run),
        "lineage": lineage(options.run),
        "rounds": rounds(options.run),
        "steps": training_steps(options.run / "run.db"),
        "dialogues_sha256": digest(options.run / "run.db"),
    }
    options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {options.out}: red {found.heldout_red_gain}, blue {found.heldout_blue_gain} on held-out goals")


def evaluation(run: Path) -> dict[str, Any] | None:
    """Settings and figures of the newest evaluation, if there is one."""
    found: Any = read_evaluation(run.resolve())
    if found is None:
        with TranscriptStore(run / "run.db", read_goals(run)) as store:
            found = stored_seas_evaluation(store)
    return {"settings": asdict(found.settings), "figures": to_record(found.figures)} if found else None


def lineage(run: Path) -> dict[str, Any] | None:
    """What each trained member of SEAS or MART says of how it was made, by its version; None for other methods.

    Theirs is numbers only: pairs, accuracies, counts of each round.
    """
    if read_settings(run)["config"]["method"] not in ("seas", "mart"):
        return None
    members = (read_member(folder) for folder in sorted((run / "population").iterdir()))
    return {
        member.version: {"label": member.label, **member.lineage}
        for member in members
        if member is not None and member.lineage
    }


def rounds(run: Path) -> list[dict[str, Any]]:
    """Figures of every round of MART, also of those that left nothing to learn from; empty for other methods."""
    with TranscriptStore(run / "run.db", read_goals(run)) as store:
        found = selected_rounds(store)
    return [{name: value for name, value in one.items() if name != "parents"} for one in found]  # these hold text


def head() -> str:
    """Commit of the checkout this script is in."""
    command = ["git", "rev-parse", "HEAD"]
    return subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True).stdout.strip()


def hardware() -> dict[str, Any]:
    """What the numbers were made on."""
    model = ""
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    return {"cpu": model, "cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}


def training_steps(database: Path) -> list[dict[str, Any]]:
    """Figures of every training step."""
    with sqlite3.connect(database) as db:
        rows = db.execute("SELECT data FROM blocks WHERE name LIKE 'step/%' ORDER BY rowid").fetchall()
    return [
        {key: round(value, 5) if isinstance(value, float) else value for key, value in json.loads(text).items()}
        for (text,) in rows
    ]


def digest(database: Path) -> str:
    """Hash of everything that was said and judged, in order."""
    total = hashlib.sha256()
    with sqlite3.connect(database) as db:
        for row in db.execute(
            "SELECT block, position, red, blue, seed, goal_id, data FROM dialogues ORDER BY block, position"
        ):
            total.update(json.dumps(row).encode())
        # A round of MART is no dialogues on the run's goals: its prompts, answers and verdicts are data.
        for row in db.execute("SELECT name, data FROM blocks WHERE name LIKE 'mart/%' ORDER BY name"):
            total.update(json.dumps(row).encode())
    return total.hexdigest()


if __name__ == "__main__":
    main()
