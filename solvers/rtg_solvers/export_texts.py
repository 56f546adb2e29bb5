"""What an exported mixture says to people: the README in its folder, and the lines that `rtg export` prints.

Numbers, versions and our own sentences only; nothing that a model wrote.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

_WHAT: Final = """\
# The {role} mixture of run {run}

The solution of a red-teaming game is a mixture: at the beginning of each dialogue one of these members is drawn with its
weight, and speaks for {role} to the end.

| weight | member | what it is |
|---|---|---|
{rows}

`mixture.json` holds the same for programs, with the rules, the sampling and the system prompt that the members were trained
with. Their numbers hold for that sampling and those prompts only.
"""

_LOAD: Final = """
## Play the mixture

Run in the folder of this file:

```python
import json
import random
from pathlib import Path

from peft import PeftModel
from rtg_agents import resolve_model
from transformers import AutoModelForCausalLM

mixture = json.loads(Path("mixture.json").read_text())
base = AutoModelForCausalLM.from_pretrained(resolve_model(mixture["base_model"]["id"]))
adapters = [member for member in mixture["members"] if member["kind"] == "adapter"]
model = PeftModel.from_pretrained(base, adapters[0]["folder"], adapter_name=adapters[0]["version"])
for member in adapters[1:]:
    model.load_adapter(member["folder"], adapter_name=member["version"])

member = random.choices(mixture["members"], [member["weight"] for member in mixture["members"]])[0]  # once per dialogue
if member["kind"] == "adapter":
    model.set_adapter(member["version"])  # otherwise see `built_by`; the base model: `with model.disable_adapter():`
```

Load the very weights of the base model that the run used: `resolve_model` finds them by the name in `mixture.json`, and
`rtg_agents.models.fingerprint(folder)` must be the `fingerprint` there. `rtg play --{role} members/NAME` talks to one member.
"""

_DISTILLED: Final = """
## One adapter instead: distilled/

```python
from peft import PeftModel
from rtg_agents import resolve_model
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained(resolve_model({model}))
model = PeftModel.from_pretrained(base, "distilled")  # run in the folder of this file
```

It was trained to say what the mixture says. What that costs, measured on fresh dialogues (`distilled/cost.json`):

{cost}
"""


def readme(mixture: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    """README.md of an export.

    Args:
        mixture: What `mixture.json` says.
        about: What `distilled/cost.json` says; empty without distilling.
    """
    rows = [
        f"| {member['weight']:.4f} | {member['version']} | "
        f"{member['built_by']}{': `' + member['folder'] + '`' if member['folder'] else ''} |"
        for member in mixture["members"]
    ]
    parts = [_WHAT.format(role=mixture["role"], run=mixture["run"], rows="\n".join(rows))]
    if any(member["kind"] == "adapter" for member in mixture["members"]):
        parts.append(_LOAD.format(role=mixture["role"]))
    if about.get("kind") in ("distilled", "copied"):
        cost = "\n".join(f"    {line}" for line in distilled_lines(mixture["role"], about))
        parts.append(_DISTILLED.format(model=json.dumps(mixture["base_model"]["id"]), cost=cost))
    elif about:
        parts.append(f"\n## No adapter in distilled/\n\n{about['about']}\n")
    return "".join(parts)


def distilled_lines(role: str, about: Mapping[str, Any]) -> list[str]:
    """What the one adapter learned and costs, a line of text each."""
    if about["kind"] != "distilled":
        return [str(about["about"]), "cost 0 by construction"]
    learned, cost = about["learned"], about["cost"]
    lines = [
        f"token log-probability of {learned['held_back_dialogues']} dialogues of the mixture held back: "
        f"{learned['token_logp_before']:.3f} before training, {learned['token_logp_after']:.3f} after"
    ]
    if learned["kl_after"] is not None:
        before, after = (
            f"{learned[f'kl_{when}']:.2f} ± {learned[f'kl_{when}_se'] or 0:.2f}" for when in ("before", "after")
        )
        lines.append(f"KL(mixture || adapter), nats per dialogue: {before} before, {after} after")
    if scripts := about["scripts_imitated_as_text"]:
        limit = "what a model may say per sentence"
        lines.append(f"scripts imitated as text, cut at {limit}: {', '.join(scripts)}")
    other = "blue" if role == "red" else "red"
    best = cost["against_best"]
    lines += [
        "",
        f"{'red wins, mean [95 % interval]':36}{'mixture':>22}{'distilled':>22}{'cost to ' + role:>22}",
        _row(f"against {other}'s mixture", cost["against_mixture"]),
        _row(f"against {other}'s best member", best),
        f"{'  which is':36}{best['opponent_of_mixture']:>22}{best['opponent_of_student']:>22}",
    ]
    return lines


def _row(name: str, duel: Mapping[str, Any]) -> str:
    return f"{name:36}" + "".join(f"{_estimate(duel[key]):>22}" for key in ("mixture", "student", "cost"))


def _estimate(data: Mapping[str, Any]) -> str:
    mean, low, high = data["mean"], data["low"], data["high"]
    if mean is None:
        return "unscored"
    return f"{mean:+.3f}" if low is None or high is None else f"{mean:+.3f} [{low:+.2f},{high:+.2f}]"
