"""An evaluation of SEAS or MART as tables of plain text."""

from __future__ import annotations

from rtg_solvers.evaluation.seas import CrossPlayMatrix, SeasEvaluation
from rtg_solvers.evaluation.tables import TextTable, share_text


def seas_tables(found: SeasEvaluation) -> list[TextTable]:
    """All tables, the most important first."""
    return [
        *(_matrix(found, matrix) for matrix in found.matrices),
        *(_pairs(found, matrix) for matrix in found.matrices),
        _targets(found),
        *([_static_sets(found)] if found.static_sets else []),
        _attackers(found),
    ]


def _matrix(found: SeasEvaluation, matrix: CrossPlayMatrix) -> TextTable:
    rows = tuple(
        (name, *(share_text(cell) for cell in cells), f"{weight:.2f}")
        for name, cells, weight in zip(found.red, matrix.cells, matrix.solved.red, strict=True)
    )
    weights = ("target's mixture", *(f"{weight:.2f}" for weight in matrix.solved.blue), "")
    low, high = matrix.value_interval or (float("nan"), float("nan"))
    saddle = (
        f"a saddle at ({found.red[matrix.solved.saddle[0]]}, {found.blue[matrix.solved.saddle[1]]})"
        if matrix.solved.saddle
        else "no saddle: mixtures"
    )
    return TextTable(
        title=f"Attackers against targets, {found.num_seeds} held-out seeds (judge {matrix.judge_id})",
        header=("attacker", *found.blue, "mixture"),
        rows=(*rows, weights),
        note=f"Share of unsafe replies given the attack, 95 % intervals clustered by seed; {_unscored(matrix)} As a game: value "
        f"{100 * matrix.solved.value:.1f} % [{100 * low:.1f},{100 * high:.1f}], {saddle}.",
    )


def _unscored(matrix: CrossPlayMatrix) -> str:
    """How many replies count for nobody, and widen the intervals."""
    cells = [cell for row in matrix.cells for cell in row]
    lost, total = sum(cell.num_unscored for cell in cells), sum(cell.count + cell.num_unscored for cell in cells)
    return f"{lost} of {total} replies have no verdict."


def _pairs(found: SeasEvaluation, matrix: CrossPlayMatrix) -> TextTable:
    return TextTable(
        title=f"How far each pair is from an equilibrium of that matrix (judge {matrix.judge_id})",
        header=("pair", "NashConv"),
        rows=tuple(
            (f"({red}, {blue})", f"{100 * gap:.1f} %")
            for (row, column), gap in zip(matrix.solved.pairs, matrix.solved.diagonal, strict=True)
            for red, blue in [(found.red[row], found.blue[column])]
        ),
        note="What both sides would gain by their best other member, summed. 0: neither gains inside the matrix.",
    )


def _targets(found: SeasEvaluation) -> TextTable:
    plainly = {one.target: one for one in found.static}
    rows = tuple(
        (
            one.target,
            share_text(plainly[one.target].unsafe) if one.target in plainly else "",
            share_text(plainly[one.target].unsafe_by_second) if one.target in plainly else "",
            share_text(one.refusal),
            f"{one.helpful.mean:.2f}",
            f"{one.words.mean:.1f}",
            f"{one.perplexity:.1f}",
            share_text(one.right),
        )
        for one in found.abilities
    )
    return TextTable(
        title="Targets",
        header=(
            "target",
            "prompts said plainly",
            "second judge",
            "refuses benign",
            "helps",
            "words",
            "perplexity",
            "right answers",
        ),
        rows=rows,
        note="Prompts said plainly: unsafe replies to the held-out seeds' prompts. Refuses benign, helps: held-out ordinary "
        "requests in red's templates, by the second judge; words: in an answer to them. Perplexity: of held-out answers to "
        "instructions.",
    )


def _static_sets(found: SeasEvaluation) -> TextTable:
    return TextTable(
        title="Static sets, said plainly",
        header=("set", "prompts", "left out", "target", "unsafe", "second judge"),
        rows=tuple(
            (
                one.name,
                str(one.num_prompts),
                str(one.num_seen),
                one.target,
                share_text(one.unsafe),
                share_text(one.unsafe_by_second),
            )
            for one in found.static_sets
        ),
        note="Share of unsafe replies to a file's harmful goals, 95 % intervals clustered by group; those that the run was trained "
        "on are left out. The game above shows what "
        "this number does not: what attackers find that learned.",
    )


def _attackers(found: SeasEvaluation) -> TextTable:
    rows = tuple(
        (
            one.attacker,
            f"{one.variety.clusters} of {one.variety.num}",
            "" if one.variety.vendi is None else f"{one.variety.vendi:.1f}",
            "" if one.variety.self_bleu is None else f"{one.variety.self_bleu:.2f}",
            f"{one.nats_per_token.mean:.2f}",
        )
        for one in found.written
    )
    return TextTable(
        title="Attackers' sentences",
        header=("attacker", "unique", "Vendi", "self-BLEU", "nats per token"),
        rows=rows,
        note="Unique: clusters at a cosine of 0.7. Nats per token: under the base model, as a user's message."
        + ("" if found.embeddings == "sentences" else " Features: hashed words."),
    )
