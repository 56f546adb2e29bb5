"""`rtg pairs`: both sides' preference pairs of a tuple log, and what was used, dropped and why. No text is printed."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from rtg_env.errors import ConfigError
from rtg_env.text import for_terminal, one_line
from rtg_solvers.pair_files import write_pairs
from rtg_solvers.pairs import BuiltPairs, PairSettings, red_pairs, target_pairs
from rtg_solvers.run_tuples import run_log, tuples_of_run
from rtg_solvers.seeding import rng_for
from rtg_solvers.tuples import TupleLog, read_tuples, write_tuples

_UNITS = {"seeds": "used: gave a pair", "attacks": "used: ranked", "replies": "used: their verdict counted"}
_TARGET_UNITS = {"attacks": "used: gave a pair", "replies": "used: stand in a pair"}


def pairs(  # noqa: PLR0913, PLR0917 - a command line
    log: Annotated[
        Path,
        typer.Argument(
            metavar="TUPLES.jsonl",
            help="Seed, attack, reply and verdict a line (docs/pairs.md); or a run, whose attack stages are then written there.",
        ),
    ],
    out_red: Annotated[
        Path | None, typer.Option(help="Red's pair file; default: TUPLES-red-pairs.jsonl beside the log.")
    ] = None,
    out_blue: Annotated[Path | None, typer.Option(help="Blue's; default: TUPLES-blue-pairs.jsonl.")] = None,
    min_margin: Annotated[float, typer.Option(help="Red: least difference of the shares of unsafe replies.")] = 0.0,
    success_and_failure: Annotated[
        bool, typer.Option("--success-and-failure", help="Red: the chosen attack must succeed, the rejected must fail.")
    ] = False,
    replies: Annotated[
        int | None, typer.Option(help="Replies each attack was to get; half of them must have a verdict.")
    ] = None,
    keep_duplicates: Annotated[
        bool, typer.Option("--keep-duplicates", help="Treat attacks of equal text as different ones.")
    ] = False,
    max_chars: Annotated[int, typer.Option(min=0, help="Drop longer attacks and replies; 0: no limit.")] = 3000,
    max_blue: Annotated[int, typer.Option(min=0, help="Blue: so many pairs, drawn from all; 0: all.")] = 2000,
    seed: Annotated[int, typer.Option(min=0, help="Decides which of blue's pairs are drawn.")] = 0,
    iteration: Annotated[
        int,
        typer.Option(
            min=0, help="Of a run: only what this iteration's attack stage left, as tuples-K.jsonl; 0: all stages."
        ),
    ] = 0,
    force: Annotated[bool, typer.Option("--force", help="Write over files that are there.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count only, write nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
) -> None:
    """Build preference pairs for both sides from attacks, replies and verdicts.

    Red's: of each seed the attack with most unsafe replies over the one with fewest. Blue's: of each attack a safe reply
    over an unsafe one. It prints how many seeds, attacks and replies were used, how many were dropped, and why; no text of
    an attack or a reply. A verdict that cannot be read is neither safe nor unsafe, and counts for nobody.
    """
    settings = PairSettings(
        min_margin=min_margin,
        require_success_and_failure=success_and_failure,
        replies_per_attack=replies,
        dedupe=not keep_duplicates,
        max_chars=max_chars or None,
        max_target_pairs=max_blue or None,
    )
    text = pairs_command(
        log,
        out_red=out_red,
        out_blue=out_blue,
        settings=settings,
        seed=seed,
        iteration=iteration,
        force=force,
        dry_run=dry_run,
        as_json=as_json,
    )
    sys.stdout.write(for_terminal(text, max_chars=1_000_000) + "\n")


def pairs_command(
    log: Path,
    *,
    out_red: Path | None,
    out_blue: Path | None,
    settings: PairSettings,
    seed: int,
    iteration: int = 0,
    force: bool,
    dry_run: bool,
    as_json: bool,
) -> str:
    """Build, write and count; arguments are the options of `rtg pairs`.

    Returns:
        What it prints: counts, reasons, names of files.

    Raises:
        ConfigError: If the log cannot be read or is broken, or a file may not be written.
        RunError: If a file cannot be written, or a folder is no run with attack stages.
    """
    run = log if log.is_dir() else None
    log = run_log(run, iteration=iteration) if run else log
    files = {
        "red": out_red or log.with_name(f"{log.stem}-red-pairs.jsonl"),
        "blue": out_blue or log.with_name(f"{log.stem}-blue-pairs.jsonl"),
    }
    if not dry_run:
        _check_files(log, files, force=force)
        if run and log.exists() and not force:
            raise ConfigError(
                f"expected no {log.name} in {run} yet, it is there; give that file, or --force to write it again"
            )
    if iteration and not run:
        raise ConfigError(f"expected the directory of a run with --iteration, got {log}; leave the option out")
    found = tuples_of_run(run, iteration=iteration) if run else read_tuples(log)
    if run and not dry_run:
        write_tuples(log, found.tuples)
    built = {
        "red": red_pairs(found.tuples, settings),
        "blue": target_pairs(found.tuples, settings, rng=rng_for(seed, "target pairs")),
    }
    if not dry_run:
        for side, path in files.items():
            write_pairs(path, built[side].pairs)
    written = {} if dry_run else {side: str(path) for side, path in files.items()}
    return _as_json(found, built, written) if as_json else _as_text(log, found, built, written)


def _check_files(log: Path, files: Mapping[str, Path], *, force: bool) -> None:
    """Refuse before anything is read.

    Raises:
        ConfigError: If two files are one, a folder is missing, or something is there already.
    """
    places = [log.resolve(), *(path.resolve() for path in files.values())]
    if len(set(places)) < len(places):
        raise ConfigError(
            "expected the log, --out-red and --out-blue to be three files, got one twice; choose other names"
        )
    for side, path in files.items():
        if not path.parent.is_dir():
            raise ConfigError(f"expected --out-{side} in a folder that exists, got {str(path.parent)!r}; make it first")
        if path.is_dir() or (path.exists() and not force):
            raise ConfigError(
                f"expected --out-{side} to be free, {str(path)!r} is there; choose another name, or --force for a file"
            )


def _as_json(log: TupleLog, built: Mapping[str, BuiltPairs], written: Mapping[str, str]) -> str:
    sides = {
        side: {
            "pairs": len(found.pairs),
            "file": written.get(side),
            "counts": {kind: tally._asdict() for kind, tally in found.tallies.items()},
            "words": found.lengths._asdict() if found.lengths else None,
        }
        for side, found in built.items()
    }
    head = {
        "tuples": len(log.tuples),
        "seeds": log.num_seeds,
        "attacks": log.num_attacks,
        "verdicts": dict(log.verdicts),
        "ignored_fields": list(log.ignored_fields),
    }
    return json.dumps({**head, **sides}, indent=1)


def _as_text(path: Path, log: TupleLog, built: Mapping[str, BuiltPairs], written: Mapping[str, str]) -> str:
    lines = [
        f"{one_line(path.name)}: {len(log.tuples):,} tuples of {log.num_seeds:,} seeds and {log.num_attacks:,} attacks",
        "verdicts: " + ", ".join(f"{count:,} {name}" for name, count in log.verdicts.items()),
    ]
    if log.ignored_fields:
        lines.append(
            "fields that were not read: " + ", ".join(one_line(name, max_chars=40) for name in log.ignored_fields)
        )
    lines += ["", *_side("red: the strongest attack of a seed over its weakest", built["red"], _UNITS)]
    if built["red"].pairs and not all(pair.prompt for pair in built["red"].pairs):
        lines.append("  The log does not say what red read (`prompt`): its pairs have an empty prompt.")
    lines += ["", *_side("blue: a safe reply to an attack over an unsafe one", built["blue"], _TARGET_UNITS), ""]
    if not written:
        lines.append("Nothing was written.")
    lines += [f"{side + ' pairs':12}{path}" for side, path in written.items()]
    return "\n".join(lines)


def _side(title: str, found: BuiltPairs, units: Mapping[str, str]) -> list[str]:
    lines = [f"{title}: {len(found.pairs):,} pairs"]
    for kind, tally in found.tallies.items():
        lines.append(f"  {kind:9}{tally.total:>9,}   {tally.used:,} {units[kind]}")
        lines += [f"  {'':9}{count:>9,}   dropped: {why}" for why, count in sorted(tally.dropped.items())]
    if words := found.lengths:
        lines.append(
            f"  words: {words.chosen:.1f} chosen, {words.rejected:.1f} rejected on average; "
            f"the chosen one is the shorter in {100 * words.shorter:.0f} % of the pairs"
        )
    return lines
