"""How many runs are trained at once."""

from collections.abc import Sequence
from itertools import pairwise

from letheon.devices import has_own_memory
from letheon.errors import ModelError
from letheon.settings import UnlearnSettings
from letheon.settings.facts import SIZED, names_where
from letheon.unlearning.inputs import Inputs
from letheon.unlearning.planning import Machine, Plan, is_small, plan_run
from letheon.unlearning.planning.estimate import OVERHEAD, WORKSPACE, Place
from letheon.unlearning.populations.step import MOST_TOKENS

_ADAPTER_BYTES, _GRADIENT_BYTES = 12, 4
"""Of a trained parameter: itself and its two moments; its gradient."""


def num_at_once(settings: Sequence[UnlearnSettings], inputs: Inputs, *, machine: Machine) -> int:
    """Return how many of the runs, at least one, fit into the machine's memory together by the plan of each.

    Weights, reference and the passes without gradients are there once. Each run adds its parameters, their
    gradients and moments, and on a GPU what a step of its own keeps: activations, head and backward, by the largest
    run. On a CPU, where so many tokens go through the model at once and no more, that is there once too.

        n = (free / (1 + OVERHEAD) - workspace - shared) / of a run

    All of them where nothing is known: of a model that cannot be planned, of a machine that does not say what it has.
    """
    if is_small(settings[0], machine, num_runs=len(settings)):
        return len(settings)
    try:
        plans = [plan_run(one, inputs, machine=machine) for one in _kinds(settings)]
    except ModelError:
        return len(settings)
    free = machine.gpu_memory if has_own_memory(machine.device) else machine.memory
    if free is None:
        return len(settings)
    of_run = max(map(_of_run, plans))
    room = free / (1 + OVERHEAD) - WORKSPACE[machine.device] - max(map(_shared, plans))
    return min(max(int(room // of_run), 1), len(settings))


def cohorts_of(num_runs: int, at_once: int) -> list[range]:
    """Return the runs, in order, cut into the fewest cohorts of at most `at_once`, of about equal size."""
    num_cohorts = -(-num_runs // at_once)
    ends = [num_runs * number // max(num_cohorts, 1) for number in range(num_cohorts + 1)]
    return [range(start, stop) for start, stop in pairwise(ends)]


def _kinds(settings: Sequence[UnlearnSettings]) -> list[UnlearnSettings]:
    """One run of each kind that takes memory of its own, of the largest rank."""
    sized = names_where(UnlearnSettings, lambda facts: facts.population is SIZED)
    largest: dict[str, UnlearnSettings] = {}
    for one in sorted(settings, key=lambda one: one.rank):
        kind = {name: value for name, value in one.plain().items() if name in sized}
        largest[repr(sorted(kind.items()))] = one
    return list(largest.values())


def _of_run(plan: Plan) -> int:
    """What one more run takes, bytes."""
    of_step = 0 if plan.device in MOST_TOKENS else plan.during("step", _places(plan))
    return (_ADAPTER_BYTES + _GRADIENT_BYTES) * plan.num_trained + of_step


def _shared(plan: Plan) -> float:
    """What all runs take together, bytes."""
    always = plan.during("always", _places(plan)) - _ADAPTER_BYTES * plan.num_trained
    if plan.device not in MOST_TOKENS:
        return always
    steps_at_once = max(1.0, MOST_TOKENS[plan.device] / max(plan.demand.largest.num_tokens, 1))
    return always + steps_at_once * plan.during("step", _places(plan))


def _places(plan: Plan) -> tuple[Place, ...]:
    """What lies in the memory that steps are taken in."""
    return plan.pools[0][1]
