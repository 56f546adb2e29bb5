"""Everything that a finished run knows, from its directory: `python examples/08_read_a_finished_run.py runs/NAME`.

The value, the mixtures (which are the result, not the last member), the gaps, the strongest attacks, where the weights
lie, and the evaluation if there was one. Without an argument it takes the newest run in runs/. A second, no model is
loaded. Expected last line: `... adapters to take home; red wins ...`.
"""

import sys
from pathlib import Path

from rtg_env.text import for_terminal
from rtg_env.transcripts import TranscriptStore
from rtg_solvers import read_evaluation, read_result
from rtg_solvers.run import read_goals, read_settings

found = sys.argv[1:] or sorted(
    map(str, Path("runs").glob("*/config.json")), key=lambda name: Path(name).stat().st_mtime
)
if not found:
    sys.exit("expected the directory of a run, there is none in runs/; make one with `rtg solve`")
path = Path(found[-1].removesuffix("/config.json")).resolve()
result = read_result(path)
if result is None:
    sys.exit(f"expected a finished run, {path} is not finished; repeat its `rtg solve` command")

config = read_settings(path)["config"]
print(f"{path.name}: {config['method']} on {config['model']}, {config['iterations']} iteration(s)\n")
for side, versions, weights in (
    ("red", result.red, result.red_mixture),
    ("blue", result.blue, result.blue_mixture),
):
    print(f"{side} mixture")
    for version, weight in zip(versions, weights, strict=True):
        print(f"  {weight:.2f}  {version}  {result.labels[version]}")
low, high = result.value_interval or (float("nan"), float("nan"))
print(f"value {result.value:.3f} [{low:.3f}, {high:.3f}]; what red wins, row by row of (red, blue):")
for version, row in zip(result.red, result.cells, strict=True):
    print(f"  {version}  " + "  ".join(f"{cell.mean:.3f} +- {cell.se:.3f}" for cell in row))

print("\nwhat deviations gain on fresh dialogues (lower bounds of NashConv)")
for number, gap in enumerate(result.oracle_gaps, start=1):
    print(f"  oracle gap of iteration {number}: {gap.total:.3f} [{gap.interval[0]:.3f}, {gap.interval[1]:.3f}]")
print(f"  restricted gap: {result.restricted_gap.total:.3f}")
print(f"  newest members over the base model: red {result.heldout_red_gain}, blue {result.heldout_blue_gain}")

with TranscriptStore(path / "run.db", read_goals(path)) as store:
    checks = [name for name in store.block_names() if name.startswith(("oracle-gap/", "restricted-gap/"))]
    attacks = [item for name in checks for item in store.block(name) if item.transcript.goal.harmful]
print("\nstrongest attacks in the checks (model text: shown, never trusted)")
scored = [item for item in attacks if not item.transcript.unscored]
for item in sorted(scored, key=lambda item: -item.transcript.utility)[:3]:
    print(f"  {item.transcript.utility:.2f}  {item.red} against {item.blue}, goal {item.transcript.goal.id}")
    for exchange in item.transcript.exchanges:
        print(f"        red:  {for_terminal(exchange.red, max_chars=120)}")
        print(f"        blue: {for_terminal(exchange.blue, max_chars=120)}")

evaluation = read_evaluation(path)
if evaluation is None:
    print(f"\nnot evaluated yet: rtg evaluate {path}")
else:
    for one in evaluation.figures.attacked:
        print(f"  {one.attacker} against {one.target}: {one.success} of the attacks succeed")

adapters = sorted(file.parent for file in (path / "population").glob("*/adapter_config.json"))
for folder in adapters:
    print(f"load with PeftModel.from_pretrained(base, {str(folder)!r})")
print(f"{len(adapters)} adapters to take home; red wins {result.value:.3f}")
