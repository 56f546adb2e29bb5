"""The report of a run: one HTML file that opens offline.

Model text is data: jinja escapes it, a content security policy forbids scripts and anything from outside, and plots are
images whose text comes from numbers and version names only.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from rtg_env.errors import ConfigError, MissingExtraError, RunError
from rtg_env.files import write_text
from rtg_env.text import for_terminal, one_line
from rtg_env.transcripts import Played, TranscriptStore
from rtg_solvers import result as result_module
from rtg_solvers.evaluation.results import Evaluation
from rtg_solvers.evaluation.run import stored_evaluation
from rtg_solvers.evaluation.seas_run import stored_seas_evaluation
from rtg_solvers.evaluation.seas_tables import seas_tables
from rtg_solvers.evaluation.tables import evaluation_tables
from rtg_solvers.gain_rows import STAGE_NOTE, GainRow, heldout_rows, restricted_row, stage_rows
from rtg_solvers.geometry import Shape
from rtg_solvers.methods.attackers import Stage
from rtg_solvers.methods.registry import AnyConfig, read_config
from rtg_solvers.methods.registry import stages as stages_of
from rtg_solvers.result import Result
from rtg_solvers.run import read_goals, read_settings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_RED, _BLUE, _GREY = "#b3372f", "#2b5fa8", "#5b6577"
_MAX_SHOWN_CHARS = 1500


class _Panel(NamedTuple):
    """One figure of every training step, as a plot."""

    name: str
    """Of the figure in a step's block."""

    title: str
    unit: str

    note: str
    """Part of the caption."""

    figures: Sequence[dict[str, Any]] = ()
    """Steps' blocks; those without the figure are left out."""


_UTILITY: Final = _Panel(
    "utility",
    "utility while training",
    "u_red per dialogue",
    "Game utility of each training step (mean of its dialogues; noisy).",
)
_KL_TO_BASE: Final = _Panel("kl", "KL to the base model", "nats per sentence", "KL to the base model, as sampled.")
_KL_TO_REFERENCE: Final = _Panel(
    "kl",
    "KL to where training began",
    "nats per attack",
    "KL to the attacker that training began at, as sampled: log-probability of a whole attack by the learner less that by the "
    "other, mean over the step.",
)
_LOSS: Final = _Panel(
    "loss", "loss of maximum likelihood", "nats per token", "Loss of the members that learn from sentences alone."
)


def write_report(path: Path, *, redact: bool = False) -> Path:
    """Write `report.html` into a run directory; works for unfinished runs as well.

    Args:
        path: The run directory.
        redact: Leave out every sentence, and the goals.

    Returns:
        Path of the page.

    Raises:
        RunError: If this is no run directory, or the page cannot be written.
    """
    settings = read_settings(path)
    try:
        config = read_config(settings["config"], "config.json")
    except ConfigError as error:
        raise RunError(f"expected the settings of a run in {path / 'config.json'}: {error}") from None
    with TranscriptStore(path / "run.db", read_goals(path)) as store:
        data = store.block_data("result")
        found = result_module.from_json(data) if data else None
        html = _render(path.name, settings, config, found, store, redact)
    page = path / "report.html"
    write_text(page, html)
    return page


def _render(
    name: str, settings: dict[str, Any], config: AnyConfig, found: Result | None, store: TranscriptStore, redact: bool
) -> str:
    try:
        import jinja2
    except ImportError as error:
        raise MissingExtraError("jinja2", "solve") from error
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("rtg_solvers"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        finalize=_clean,
    )
    names = store.block_names()
    evaluated, stages = stored_evaluation(store), stages_of(config)
    on_seeds = stored_seas_evaluation(store)
    figures = [store.block_data(block) for block in names if block.startswith("step/")]
    panels = _panels(figures, stages) if figures else []
    context: dict[str, Any] = {
        "name": name,
        "config": config,
        "judge_id": settings["judge_id"],
        "settings_text": json.dumps(settings, indent=1),
        "result": found,
        "warnings": found.warnings if found else (),
        "num_units": len(names),
        "evaluation": (evaluation_tables(evaluated.figures) if evaluated else [])
        + (seas_tables(on_seeds.figures) if on_seeds else []),
        "evaluation_plot": _image(_plot_evaluation(evaluated.figures, None if stages else found)) if evaluated else "",
        "redacted": redact,
        "stage_note": STAGE_NOTE if stages else "",
        "curves": _image(_plot_curves(panels)) if panels else "",
        "curves_note": " ".join(panel.note for panel in panels),
        "sections": [(title, _shown(played, redact)) for title, played in _notable(store, names) if played],
    }
    if found is not None:
        gains = _gains(found, stages)
        context |= {
            "heatmap": _image(_plot_payoffs(found)),
            "gains": _image(_plot_gains(gains)),
            "rows": [
                {
                    "version": version,
                    "label": found.labels[version],
                    "cells": list(zip(cells, harm, unhelpful, strict=True)),
                    "weight": weight,
                }
                for version, cells, harm, unhelpful, weight in zip(
                    found.red, found.cells, found.harm_cells, found.unhelpful_cells, found.red_mixture, strict=True
                )
            ],
            "gap_curve": _image(_plot_gap_curve(found)) if len(found.oracle_gaps) > 1 and not stages else "",
            "shape": found.shape,
            "spread": _spread,
            "layers": _layer_rows(found.shape),
            "gain_rows": [(row.what, *row.texts) for row in gains],
        }
    return environment.get_template("report.html.jinja").render(context)


def _clean(value: Any) -> Any:
    """Everything that the template prints loses control and bidirectional characters; jinja then escapes it."""
    return (
        for_terminal(value, max_chars=200_000) if isinstance(value, str) and not hasattr(value, "__html__") else value
    )


def _label(text: str) -> str:
    """Text in a plot: one short line that is not taken for a formula."""
    return one_line(text, max_chars=40).replace("$", r"\$")


def _gains(found: Result, stages: Sequence[Stage]) -> list[GainRow]:
    again = f"the same, judged by {found.second_judge['judge_id']}" if found.second_judge else ""
    gap = found.restricted_gap
    both = [
        GainRow("oracle_gap", found.oracle_gap.red_gain, found.oracle_gap.blue_gain),
        GainRow("restricted_gap", gap.red_gain, gap.blue_gain),
    ]
    alone = [*stage_rows(found, stages), restricted_row(found)] if stages else []
    return [*(alone or both), *heldout_rows(found, again=again)]


def _notable(store: TranscriptStore, names: Sequence[str]) -> list[tuple[str, list[Played]]]:
    """Dialogues at both ends, one per goal, from the checks if there are any, else from the cells."""
    blocks = [n for n in names if n.startswith(("restricted-gap/", "oracle-gap/"))] or [
        n for n in names if n.startswith("cell/")
    ]
    played = [item for block in blocks for item in store.block(block) if not item.transcript.unscored]
    played.sort(key=lambda item: item.transcript.utility, reverse=True)
    attacks = [item for item in played if item.transcript.goal.harmful]
    ordinary = [item for item in played if not item.transcript.goal.harmful]
    return [
        ("Strongest attacks", _first_per_goal(attacks, 4)),
        ("Attacks that won least", _first_per_goal(attacks[::-1], 2)),
        ("Ordinary requests that blue failed most", _first_per_goal(ordinary, 2)),
    ]


def _first_per_goal(played: Sequence[Played], count: int) -> list[Played]:
    firsts: dict[str, Played] = {}
    for item in played:
        firsts.setdefault(item.transcript.goal.id, item)
    return list(firsts.values())[:count]


def _shown(played: Sequence[Played], redact: bool) -> list[dict[str, Any]]:
    def text(sentence: str) -> str:
        if redact:
            return f"[{len(sentence)} characters]"
        return for_terminal(sentence, max_chars=_MAX_SHOWN_CHARS)

    return [
        {
            "red": item.red if item.transcript.goal.harmful else "nature",
            "blue": item.blue,
            "speaker": "red" if item.transcript.goal.harmful else "user",
            "category": item.transcript.goal.category,
            "goal": text(item.transcript.goal.text),
            "utility": item.transcript.utility,
            "exchanges": [
                {"red": text(e.red), "blue": text(e.blue), "harm": v.harm, "refusal": v.refusal, "helpful": v.helpful}
                for e, v in zip(item.transcript.exchanges, item.transcript.verdicts, strict=True)
            ],
        }
        for item in played
    ]


def _figure(width: float, height: float) -> Figure:
    """A figure that touches no global state of matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "solve") from error
    return Figure(figsize=(width, height), layout="constrained")


def _plot_payoffs(found: Result) -> Figure:
    rows, columns = len(found.red), len(found.blue)
    figure = _figure(3.2 + 1.5 * columns, 2.2 + 0.62 * rows)
    grid = figure.add_gridspec(2, 2, width_ratios=[max(2.0, columns), 1.0], height_ratios=[max(2.0, rows), 1.0])
    main = figure.add_subplot(grid[0, 0])
    means = [[cell.mean for cell in row] for row in found.cells]
    high = max(0.1, *(max(row) for row in means))
    main.imshow(means, cmap="Reds", vmin=0.0, vmax=high, aspect="auto")
    for r, row in enumerate(found.cells):
        for c, cell in enumerate(row):
            ink = "white" if cell.mean > 0.6 * high else "black"
            main.text(c, r, f"{cell.mean:.3f}\n± {cell.se:.3f}", ha="center", va="center", color=ink, fontsize=9)
    main.set_yticks(range(rows), [f"{v.split('@')[0]}\n{_label(found.labels[v])}" for v in found.red], fontsize=8)
    main.tick_params(labelbottom=False)
    red = figure.add_subplot(grid[0, 1], sharey=main)
    red.barh(range(rows), found.red_mixture, color=_RED)
    red.set(xlim=(0, 1.05), title="red mixture")
    red.tick_params(labelleft=False)
    blue = figure.add_subplot(grid[1, 0], sharex=main)
    blue.bar(range(columns), found.blue_mixture, color=_BLUE, width=0.5)
    blue.set(ylim=(0, 1.05), ylabel="blue mixture")
    blue.set_xticks(range(columns), [f"{v.split('@')[0]}\n{_label(found.labels[v])}" for v in found.blue], fontsize=8)
    return figure


def _plot_gains(rows: Sequence[GainRow]) -> Figure:
    figure = _figure(8.4, 1.2 + 0.55 * len(rows))
    axes = figure.subplots()
    for index, row in enumerate(rows):
        for offset, estimate, colour in ((-0.13, row.red, _RED), (0.13, row.blue, _BLUE)):
            if estimate is None:
                continue
            axes.plot([estimate.low, estimate.high], [index + offset] * 2, color=colour, lw=2)
            axes.plot(estimate.mean, index + offset, "o", color=colour, ms=5)
    axes.axvline(0, color=_GREY, lw=0.8)
    axes.set_yticks(range(len(rows)), [_label(row.what) for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel("gain in utility (red dots: red's gain, blue dots: blue's gain)")
    return figure


def _plot_gap_curve(found: Result) -> Figure:
    figure = _figure(8.4, 2.8)
    axes = figure.subplots()
    iterations = range(1, len(found.oracle_gaps) + 1)
    totals = [gap.total for gap in found.oracle_gaps]
    lows, highs = zip(*(gap.interval for gap in found.oracle_gaps), strict=True)
    axes.fill_between(iterations, lows, highs, color=_GREY, alpha=0.2, lw=0)
    axes.plot(iterations, totals, "o-", color="black", label="both sides")
    for colour, side in ((_RED, "red"), (_BLUE, "blue")):
        gains = [max(0.0, (gap.red_gain if side == "red" else gap.blue_gain).mean) for gap in found.oracle_gaps]
        axes.plot(iterations, gains, "--", color=colour, label=f"{side}'s part")
    axes.set(xlabel="iteration", ylabel="oracle_gap", ylim=(0, None))
    axes.set_xticks(list(iterations))
    axes.legend(fontsize=8)
    return figure


def _plot_evaluation(figures: Evaluation, found: Result | None) -> Figure:
    """Success by attacker and target, and the gaps by iteration; oracle gaps of the result, if it is given."""
    figure = _figure(10.5, 3.8)
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    targets = list(dict.fromkeys(one.target for one in figures.attacked))
    attackers = list(dict.fromkeys(one.attacker for one in figures.attacked))
    between = ("#7fa3d4", "#4f9a94", "#c08a3e", "#8a6bb0")  # attackers' methods tune any number of targets
    colours = [_GREY, *(between[number % len(between)] for number in range(len(targets) - 2)), _BLUE]
    for number, (target, colour) in enumerate(zip(targets, colours, strict=False)):
        for one in (one for one in figures.attacked if one.target == target):
            place = attackers.index(one.attacker) + 0.66 / max(3, len(targets)) * (number - 1)
            left.plot([one.success.low, one.success.high], [place] * 2, color=colour, lw=2)
            left.plot(one.success.mean, place, "o", color=colour, ms=5)
        left.plot([], [], "o-", color=colour, label=f"against {target}")
    left.set_yticks(range(len(attackers)), [_label(name) for name in attackers], fontsize=8)
    left.invert_yaxis()
    left.set(xlim=(0, 1), xlabel="attacks that succeed")
    left.legend(fontsize=7)
    curves = {"restricted": [point.restricted for point in figures.gaps]}
    curves["independent"] = [point.independent for point in figures.gaps]
    if found is not None:
        curves["oracle"] = list(found.oracle_gaps)
    for number, (name, gaps) in enumerate(curves.items()):
        # An oracle gap is that of the mixture before its iteration.
        at = range(len(gaps)) if name == "oracle" else [point.iteration for point in figures.gaps]
        places = [k + 0.06 * (number - 1) for k in at]
        totals = [gap.total for gap in gaps]
        reach = [[t - gap.interval[0] for t, gap in zip(totals, gaps, strict=True)]]
        reach.append([gap.interval[1] - t for t, gap in zip(totals, gaps, strict=True)])
        bars = [[max(0.0, value) for value in row] for row in reach]
        right.errorbar(places, totals, yerr=bars, fmt="o-", ms=4, lw=1, capsize=2, label=f"{name}_gap")
    right.set_xticks(range(figures.gaps[-1].iteration + 1))
    right.set(ylim=(0, None), xlabel="solution after iteration", ylabel="gap")
    right.legend(fontsize=7)
    return figure


def _layer_rows(shape: Shape | None) -> list[dict[str, Any]]:
    if shape is None:
        return []
    return [
        {"pairs": ", ".join(f"{_short(red)} + {_short(blue)}" for red, blue in layer), "cycles": cycles}
        for layer, cycles in zip(shape.layers, shape.cycles, strict=True)
    ]


def _spread(found: tuple[float, float, float] | None) -> str:
    return f"{found[1]:.2f} [{found[0]:.2f}, {found[2]:.2f}]" if found else "nothing measurable"


def _short(version: str) -> str:
    return version.split("@", maxsplit=1)[0]


def _panels(figures: Sequence[dict[str, Any]], stages: Sequence[Stage]) -> list[_Panel]:
    """Panels of the training curves; of methods in stages, those that have anything to show."""
    if not stages:
        return [_UTILITY._replace(figures=figures), _KL_TO_BASE._replace(figures=figures)]
    by_likelihood = {stage.version for stage in stages if stage.recipe in ("sft", "smoothing", "safety")}
    lessons = [step for step in figures if step["version"] in by_likelihood]
    panels = [_UTILITY._replace(figures=figures), _KL_TO_REFERENCE._replace(figures=figures)]
    panels.append(_LOSS._replace(figures=lessons))
    return [panel for panel in panels if any(step.get(panel.name) is not None for step in panel.figures)]


def _plot_curves(panels: Sequence[_Panel]) -> Figure:
    figure = _figure(max(8.4, 3.9 * len(panels)), 3.0)
    every_axes = figure.subplots(1, len(panels), squeeze=False)[0]
    versions = list(dict.fromkeys((str(s["version"]), str(s["role"])) for panel in panels for s in panel.figures))
    for panel, axes in zip(panels, every_axes, strict=True):
        for version, role in versions:
            # Some steps lack a figure: nobody plays while sentences are imitated, tactics have no base model.
            own = [s for s in panel.figures if s["version"] == version and s.get(panel.name) is not None]
            colour = _RED if role == "red" else _BLUE
            style = ["-", "--", ":", "-."][sum(r == role for _, r in versions[: versions.index((version, role))]) % 4]
            places, values = [s["step"] + 1 for s in own], [s[panel.name] for s in own]
            axes.plot(places, values, style, color=colour, label=_short(version))
        axes.set(xlabel="step", ylabel=panel.unit, title=panel.title)
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(*every_axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    return figure


def _image(figure: Figure) -> str:
    """A figure as a data URI, of any length; SVG inside <img> runs no scripts."""
    from markupsafe import Markup

    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return Markup("data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode())
