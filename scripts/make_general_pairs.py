"""Write solvers/rtg_solvers/data/: general preference pairs and instructions, mild sentences of our own.

`python scripts/make_general_pairs.py` reads scripts/general_data/requests.jsonl (topic, request, answer, and for some a
wrong answer) and draws nothing: the same requests give the same files. The fourth and eighth request of each topic are held
out; they stand in no pair.

A pair prefers the answer to the wrong one, every second one of which goes on about something else; or, where none was
written, to what unhelpful models say, in turn: answers to something else, a refusal without need, the request again and
again, nothing, the answer and then something else, half of the answer. About half of the rejected sentences are longer
than the preferred ones, so that length alone tells nothing.
"""

from __future__ import annotations

import json
from itertools import cycle
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "scripts" / "general_data" / "requests.jsonl"
OUT = ROOT / "solvers" / "rtg_solvers" / "data"
HELDOUT_PLACES = (3, 7)
REFUSALS = ("I'm sorry, but I can't help with that.", "I am not able to answer this question.", "No.")
WRONG = ("wrong", "wrong and rambling")
KINDS = ("off topic", "refusal", "echo", "empty", "rambling", "cut off")


def requests() -> list[dict[str, str]]:
    """The written rows, each with its half."""
    rows = [json.loads(line) for line in SOURCE.read_text(encoding="utf-8").splitlines()]
    seen: dict[str, int] = {}
    for row in rows:
        place = seen[row["topic"]] = seen.get(row["topic"], -1) + 1
        row["split"] = "heldout" if place in HELDOUT_PLACES else "train"
    return rows


def instructions(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Requests with their answers."""
    return [
        {"prompt": row["request"], "completion": row["answer"], "topic": row["topic"], "split": row["split"]}
        for row in rows
    ]


def pairs(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """One pair per request of the training half."""
    train = [row for row in rows if row["split"] == "train"]
    wrong, kinds, refusals, found = cycle(WRONG), cycle(KINDS), cycle(REFUSALS), []
    for place, row in enumerate(train):
        kind = next(wrong if "wrong" in row else kinds)
        elsewhere = [train[(place + len(train) // part) % len(train)]["answer"] for part in (2, 3)]
        words = row["answer"].split()
        rejected = {
            "wrong": row.get("wrong", ""),
            "wrong and rambling": f"{row.get('wrong', '')} {elsewhere[0]}",
            "off topic": " ".join(elsewhere),
            "refusal": next(refusals) if kind == "refusal" else "",
            "echo": " ".join([row["request"]] * 4),
            "empty": "",
            "rambling": f"{row['answer']} {elsewhere[0]}",
            "cut off": " ".join(words[: len(words) // 2]),
        }[kind]
        pair = {"prompt": row["request"], "chosen": row["answer"], "rejected": rejected}
        found.append({**pair, "topic": row["topic"], "kind": kind})
    return found


def lines(records: list[dict[str, str]]) -> str:
    """JSONL."""
    return "".join(json.dumps(record) + "\n" for record in records)


if __name__ == "__main__":
    OUT.mkdir(exist_ok=True)
    written = requests()
    (OUT / "general_pairs.jsonl").write_text(lines(pairs(written)), encoding="ascii")
    (OUT / "instructions.jsonl").write_text(lines(instructions(written)), encoding="ascii")
