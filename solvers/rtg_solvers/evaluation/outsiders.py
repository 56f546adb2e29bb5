"""Policies from outside a run's populations, which try to gain on its solution.

Red: templates kept for measuring, a fresh best response. Blue: always refuse, always comply, the base model with a
safety prompt, a fresh best response. Fresh means: from the base, with a seed of its own and a budget of its own, against
the reported mixture. It learns, so it makes the gap a better lower bound; it is never added to the populations.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from rtg_agents.policy import BASE, BackendPolicy
from rtg_agents.population import Population
from rtg_agents.prompting import SAFETY_PROMPT, blue_view_with
from rtg_agents.scripted import always_comply, always_refuse, escalation, heldout_templates
from rtg_env.types import Role
from rtg_solvers.empirical import Mixture
from rtg_solvers.evaluation.attacks import REFUSER
from rtg_solvers.loop import Task
from rtg_solvers.oracles.rl import RLOracle
from rtg_solvers.oracles.shaping import DiversitySettings
from rtg_solvers.payoffs import PayoffTensor
from rtg_solvers.workbench import Workbench

TEMPLATES: Final = "heldout-templates"
ESCALATION: Final = "escalation"
COMPLIER: Final = "always-comply"
SAFE: Final = "safety-prompt"


def add_scripts(bench: Workbench) -> None:
    """Make the outsiders without training known to a workbench."""
    safe = BackendPolicy(
        name=SAFE,
        backend=bench.backend,
        adapter=BASE,
        prompting=blue_view_with(SAFETY_PROMPT),
        sampling=bench.config.blue_sampling,
    )
    everyone = (
        heldout_templates(TEMPLATES),
        escalation(ESCALATION),
        always_refuse(REFUSER),
        always_comply(COMPLIER),
        safe,
    )
    bench.outsiders.update({policy.name: policy for policy in everyone})


def add_fresh(
    bench: Workbench, role: Role, mixture: Mixture, payoffs: PayoffTensor, *, name: str, steps: int, seed: int
) -> str:
    """Train, or read back, a best response that is not a member.

    Args:
        bench: Learns to know it.
        role: Its side.
        mixture: Whom it prepares for.
        payoffs: What that was solved from.
        name: Distinguishes it from those of other evaluations.
        steps: Optimizer steps.
        seed: Of its training.

    Returns:
        Its version.
    """
    outside = Population(bench.run.path / "outsiders", bench.backend, bench.config.sampling)
    version = f"{role}_fresh_{name}@v1"
    if outside.restored(version) is None:
        settings = replace(bench.config.rl, steps=steps, start="base", diversity=DiversitySettings())
        context = replace(bench.context(), seed=seed)
        task = Task(role=role, iteration=0, version=version, mixture=mixture, payoffs=payoffs, context=context)
        outside.add(RLOracle(bench.backend, settings).respond(task))
    bench.outsiders[version] = outside.policies[version]
    return version
