"""What a person sees in the terminal: progress with an estimate of the time left, and the closing table.

Everything that models wrote passes through `rtg_env.text` and rich's escape before it gets here.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Final

from rich import box
from rich.columns import Columns
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markup import escape
from rich.measure import Measurement
from rich.padding import Padding
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from rtg_env.text import one_line
from rtg_solvers.evaluation.tables import TextTable
from rtg_solvers.gain_rows import STAGE_NOTE, heldout_rows, restricted_row, stage_rows
from rtg_solvers.methods.attackers import Stage
from rtg_solvers.result import Result

_NOTE: Final = (
    "oracle_gap: each newest member over its own side's mixture before it joined, against the mixture it was trained "
    "on. restricted_gap: the best member over the final mixture. Both on training goals; small means near an "
    "equilibrium or a weak best response. held-out gain: newest member over the base model, against the base model, "
    "on goals nobody trained on."
)

_UNBOUNDED: Final = 10_000
"""Columns of a terminal in which every table fits."""


class RichProgress:
    """Draws announcements and bars; on a dumb terminal or a pipe, a line every tenth of the way.

    Args:
        console: Where to.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("left:"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {}
        self._tenths: dict[str, int] = {}
        self._started: dict[str, tuple[float, float]] = {}

    def __enter__(self) -> RichProgress:
        if self._console.is_terminal:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._progress.stop()

    def message(self, text: str) -> None:
        """One line above the bars."""
        self._console.print(escape(one_line(text, max_chars=400)), highlight=False)

    def advance(self, task: str, done: float, total: float) -> None:
        """Move a bar, or print a line at every tenth."""
        if not self._console.is_terminal:
            self._print_tenth(task, done / total if total else 0.0)
            return
        if task not in self._tasks:
            self._tasks[task] = self._progress.add_task(escape(task), total=total)
        self._progress.update(self._tasks[task], completed=done, visible=done < total)

    def _print_tenth(self, task: str, share: float) -> None:
        now = time.monotonic()
        started = self._started.setdefault(task, (now, share))
        if int(10 * share) <= self._tenths.get(task, 0):
            return
        self._tenths[task] = int(10 * share)
        pace = (share - started[1]) / max(now - started[0], 1e-9)
        left = f", about {(1 - share) / pace / 60:.0f} min left" if pace > 0 and share < 1 else ""
        self._console.print(f"{escape(task)}: {100 * share:.0f} %{left}", highlight=False)


class Fitting:
    """A table where the terminal is wide enough for it; else its rows one below the other, so that nothing is cut.

    Columns are given their widths here: rich's own layout shortens words, too, to make a table fit.

    Args:
        table: Its first column says what each row is of.
    """

    def __init__(self, table: Table) -> None:
        self._table = table
        self._title, self._note = table.title, table.caption
        table.title = table.caption = None  # they may be wider than the table
        table.columns[0].no_wrap = True

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Measure, then draw."""
        table = self._table
        widths = self._widths(console, options)
        yield f"[italic]{self._title}[/]"
        if widths:
            for column, width in zip(table.columns, widths, strict=True):
                column.width = width
            yield table
        else:
            yield from self._rows()
        if self._note:
            yield f"[dim italic]{self._note}[/]"
        yield ""

    def _rows(self) -> RenderResult:
        columns = self._table.columns
        _, *names = (str(column.header) for column in columns)
        for first, *cells in zip(*(column.cells for column in columns), strict=True):
            yield f"  [bold]{first}[/]"
            told = [f"{name} {cell}" for name, cell in zip(names, cells, strict=True) if cell]
            yield Padding(Columns(told, padding=(0, 3)), (0, 0, 0, 4))

    def _widths(self, console: Console, options: ConsoleOptions) -> list[int]:
        """Of each column, so that no word is cut; empty if that does not fit. Cells get their whole width before headers do."""
        columns = self._table.columns
        wanted = [
            (
                max(
                    _longest_word(column.header),
                    *(_whole(cell) if column.no_wrap else _longest_word(cell) for cell in cells),
                ),
                max(map(_whole, cells)),
                _whole(column.header),
            )
            for column in columns
            for cells in [[str(cell) for cell in column.cells] or [""]]
        ]
        natural = Measurement.get(console, options.update(max_width=_UNBOUNDED), self._table).maximum
        between = natural - sum(max(cells, header) for _, cells, header in wanted)
        widths = [least for least, _, _ in wanted]
        left = options.max_width - between - sum(widths)
        if left < 0:
            return []
        for goal in (1, 2):
            for place, want in enumerate(wanted):
                more = max(0, min(left, want[goal] - widths[place]))
                widths[place] += more
                left -= more
        return widths


def _whole(cell: object) -> int:
    """Columns that a cell takes on one line."""
    return Text.from_markup(str(cell)).cell_len


def _longest_word(cell: object) -> int:
    """Columns of its longest word."""
    return max((word.cell_len for word in Text.from_markup(str(cell)).split(" ")), default=0)


def result_tables(result: Result, stages: Sequence[Stage] = ()) -> list[Fitting]:
    """The payoff matrix with both mixtures, and the gaps.

    Args:
        result: Of a run.
        stages: Of its method, if one side learned alone in each.
    """
    return [Fitting(_payoff_table(result)), Fitting(_gap_table(result, stages))]


def _payoff_table(result: Result) -> Table:
    payoff = Table(
        title="Payoff: what red wins per dialogue (mean ± standard error)", title_justify="left", box=box.SIMPLE_HEAD
    )
    payoff.add_column("red \\ blue")
    for version in result.blue:
        payoff.add_column(_name(result, version), justify="right")
    payoff.add_column("red mixture", justify="right")
    for version, row, weight in zip(result.red, result.cells, result.red_mixture, strict=True):
        payoff.add_row(_name(result, version), *(f"{cell.mean:.3f} ± {cell.se:.3f}" for cell in row), f"{weight:.2f}")
    payoff.add_section()
    worth = f"value {result.value:.3f}"
    if result.value_interval:
        worth += f" [{result.value_interval[0]:.2f},{result.value_interval[1]:.2f}]"
    if abs(result.expected - result.value) >= 5e-4:
        worth = f"{result.expected:.3f}, at equilibrium {result.value:.3f}"
    payoff.add_row("blue mixture", *(f"{weight:.2f}" for weight in result.blue_mixture), worth)
    if result.refuser_loss > 0:
        harmful, benign = result.value_by_kind
        payoff.caption = (
            f"With both mixtures red wins {harmful:.3f} on harmful goals (harm that red wins) and {benign:.3f} on benign ones (help "
            "that blue fails to give; red only watches). A blue that refuses everything would lose about "
            f"{result.refuser_loss:.2f}."
        )
        payoff.caption_justify = "left"
    return payoff


def _gap_table(result: Result, stages: Sequence[Stage]) -> Table:
    gaps = Table(
        title="Gains on fresh dialogues: mean [95 % interval], clustered by goal",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    for column in ("gap", "red gains", "blue gains"):
        gaps.add_column(column, no_wrap=True, justify="left" if column == "gap" else "right")
    if stages:
        gaps.add_row("oracle_gap of each stage:", "", "")
        for row in stage_rows(result, stages):
            gaps.add_row(row.what, *row.texts)
        gaps.add_row("restricted_gap", *restricted_row(result).texts)
    else:
        _add_both(gaps, result)
    again = f"  by {_short(result.second_judge['judge_id'])}" if result.second_judge else ""
    for row in heldout_rows(result, again=again):
        gaps.add_row(row.what, *row.texts)
    gaps.caption = (STAGE_NOTE if stages else _NOTE) + " A gain whose interval holds 0 shows nothing."
    gaps.caption_justify = "left"
    return gaps


def _add_both(gaps: Table, result: Result) -> None:
    """The gaps of methods in which both sides learn in every iteration."""
    for name, gap in (("oracle_gap", result.oracle_gap), ("restricted_gap", result.restricted_gap)):
        low, high = gap.interval
        gaps.add_row(name, str(gap.red_gain), str(gap.blue_gain))
        gaps.add_row("  both sides, sum", f"{gap.total:.3f}", f"[{low:.2f},{high:.2f}]")
    if len(result.oracle_gaps) > 1:
        curve = " ".join(f"{gap.total:.3f}" for gap in result.oracle_gaps)
        gaps.add_row("  oracle_gap by iteration", curve, "")


def text_table(found: TextTable) -> Fitting:
    """A table of plain text for the terminal."""
    table = Table(title=found.title, title_justify="left", box=box.SIMPLE_HEAD)
    for index, name in enumerate(found.header):
        table.add_column(escape(name), justify="right" if index else "left")
    for row in found.rows:
        table.add_row(*(escape(one_line(cell, max_chars=80)) for cell in row))
    table.caption, table.caption_justify = found.note or None, "left"
    return Fitting(table)


def _short(text: str) -> str:
    return escape(one_line(text.split("+", maxsplit=1)[0], max_chars=18))


def _name(result: Result, version: str) -> str:
    label = one_line(result.labels.get(version, ""), max_chars=40)
    return f"{escape(version.split('@', maxsplit=1)[0])} {escape(label)}"
