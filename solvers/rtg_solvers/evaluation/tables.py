"""An evaluation as tables of plain text, for the terminal and for the report."""

from __future__ import annotations

from dataclasses import dataclass

from rtg_solvers.diversity import rarefied
from rtg_solvers.evaluation.results import Evaluation, Variety
from rtg_solvers.gaps import Gap
from rtg_solvers.measures import Estimate

_NUM_TOPICS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class TextTable:
    """A table of text; the first column holds names."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def evaluation_tables(found: Evaluation) -> list[TextTable]:
    """All tables, the most important first."""
    tables = [_attacks(found), _ordinary(found), _dialogues(found), _gaps(found), _games(found), _texts(found)]
    return [table for table in [*tables, _topics(found)] if table.rows]


def _attacks(found: Evaluation) -> TextTable:
    targets = list(dict.fromkeys(one.target for one in found.attacked))
    attackers = list(dict.fromkeys(one.attacker for one in found.attacked))
    cells = {(one.attacker, one.target): one for one in found.attacked}
    rows = [
        (attacker, *(share_text(cells[attacker, target].success) for target in targets), *_queries(found, attacker))
        for attacker in attackers
    ]
    return TextTable(
        title=f"Attacks that succeed, on goals nobody trained on (judge {found.judge_id})",
        header=("attacker", *(f"against {target}" for target in targets), "answers asked"),
        rows=tuple(rows),
        note="Share of sentences whose mean harm over k answers is above 1/2, with a 95 % interval clustered by goal. "
        "Best of n tries n sentences on the target first, and keeps the one that the training judge likes best.",
    )


def _queries(found: Evaluation, attacker: str) -> tuple[str]:
    return (str(max(one.queries for one in found.attacked if one.attacker == attacker)),)


def _ordinary(found: Evaluation) -> TextTable:
    rows = tuple(
        (
            one.target,
            share_text(one.refusal),
            _change(one.refusal_change),
            _short(one.helpful),
            _change(one.helpful_change),
        )
        for one in found.helped
    )
    return TextTable(
        title=f"Ordinary requests nobody trained on (judge {found.judge_id})",
        header=("target", "refuses", "change", "helps", "change"),
        rows=rows,
        note="Changes are from the base model, on the same requests.",
    )


def _dialogues(found: Evaluation) -> TextTable:
    length = max((len(one.success_at) for one in found.dialogues), default=0)
    rows = tuple(
        (
            one.attacker,
            one.target,
            *(share_text(estimate) for estimate in one.success_at),
            " ".join(f"{value:.2f}" for value in one.reward),
        )
        for one in found.dialogues
    )
    return TextTable(
        title=f"Dialogues of {length} exchanges (judge {found.judge_id})",
        header=("attacker", "target", *(f"success@{t + 1}" for t in range(length)), "paid"),
        rows=rows,
        note="Paid: what red gets in each exchange on average, the increase of the greatest harm so far.",
    )


def _gaps(found: Evaluation) -> TextTable:
    rows = tuple(
        (
            str(point.iteration),
            f"{point.value:.3f}",
            _gap(point.restricted),
            _gap(point.independent),
            _who(point.independent),
        )
        for point in found.gaps
    )
    return TextTable(
        title=f"Distance of each solution from an equilibrium (judge {found.trained_judge_id}, training goals)",
        header=("iteration", "value", "restricted_gap", "independent_gap", "best from outside"),
        rows=rows,
        note="Sums of both sides' gains, each counted from 0, with 95 % intervals; lower bounds on NashConv. "
        "independent_gap: the best of several policies from outside, chosen on one half of the deals, measured on the other.",
    )


def _games(found: Evaluation) -> TextTable:
    combined = found.combined
    interval = (
        f" [{combined.value_interval[0]:.2f}, {combined.value_interval[1]:.2f}]" if combined.value_interval else ""
    )
    rows = (
        ("the run's game, its value", f"{found.mixture_value:.3f}"),
        ("its newest members against each other", _number(found.last_against_last)),
        ("its mixtures, by the reporting judge", f"{found.cross_play.expected:.3f}"),
        ("value of its payoffs, by the reporting judge", f"{found.cross_play.value:.3f}"),
        ("combined game of members and outsiders, its value", f"{combined.value:.3f}{interval}"),
        ("population exploitability of red", f"{combined.red_exploitability:.3f}"),
        ("population exploitability of blue", f"{combined.blue_exploitability:.3f}"),
    )
    return TextTable(title="What red wins per dialogue, training goals", header=("game", "value"), rows=rows)


def _texts(found: Evaluation) -> TextTable:
    successes = [one.variety_of_successes.num for one in found.written]
    common = min((num for num in successes if num), default=0)
    rows = tuple(
        (
            one.attacker,
            str(one.training_queries or ""),
            f"{one.perplexity:.0f}",
            *_variety(one.variety),
            *_variety(one.variety_of_successes)[:2],
            _rarefied(one.variety_of_successes, common),
        )
        for one in found.written
    )
    return TextTable(
        title="The attacks as texts",
        header=(
            "attacker",
            "trained with",
            "perplexity",
            "unique",
            "Vendi",
            "self-BLEU",
            "successes",
            "their Vendi",
            f"unique of {common}",
        ),
        rows=rows,
        note="Trained with: answers of targets. Perplexity under the base model. Unique: clusters at a cosine of 0.7, of how "
        f"many. Successes: unique ones against the base model; unique of {common}: as many to expect among {common} of "
        "them, the least that any attacker with one has"
        + ("." if found.embeddings == "sentences" else ". Features: hashed words, as in training."),
    )


def _topics(found: Evaluation) -> TextTable:
    topics = found.cross_play.topics[:_NUM_TOPICS]
    rows = tuple((one.category, _plain(one.base), _plain(one.mixture), str(one.num_dialogues)) for one in topics)
    return TextTable(
        title=f"Mean harm by topic, red playing its mixture (judge {found.judge_id}, training goals)",
        header=("topic", "base model", "blue's mixture", "dialogues"),
        rows=rows,
    )


def share_text(estimate: Estimate) -> str:
    """A share in per cent with its interval; `-` for an interval from one goal, which there is not."""
    if estimate.mean != estimate.mean:
        return "unknown"
    if estimate.low != estimate.low:
        return f"{100 * estimate.mean:.0f} % [-]"
    return f"{100 * estimate.mean:.0f} % [{100 * estimate.low:.0f},{100 * estimate.high:.0f}]"


def _short(estimate: Estimate) -> str:
    return f"{estimate.mean:.2f} [{estimate.low:.2f},{estimate.high:.2f}]"


def _number(estimate: Estimate) -> str:
    return f"{estimate.mean:.3f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def _change(estimate: Estimate | None) -> str:
    return "" if estimate is None else f"{estimate.mean:+.2f} [{estimate.low:+.2f},{estimate.high:+.2f}]"


def _plain(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _gap(gap: Gap) -> str:
    low, high = gap.interval
    return f"{gap.total:.3f} [{low:.2f},{high:.2f}]"


def _who(gap: Gap) -> str:
    return " ".join(version.split("@", maxsplit=1)[0] for version in (gap.red_deviation, gap.blue_deviation))


def _rarefied(found: Variety, count: int) -> str:
    return f"{rarefied(found.sizes, count):.1f}" if 0 < count <= found.num else ""


def _variety(found: Variety) -> tuple[str, str, str]:
    numbers = ["" if value is None else f"{value:.2f}" for value in (found.vendi, found.self_bleu)]
    return f"{found.clusters} of {found.num}", numbers[0], numbers[1]
