"""The gradients of one step of several runs, through the frozen model once."""

from collections.abc import Iterator, Mapping, Sequence

import torch

from letheon.data.packing import PackedBatch, join, token_groups
from letheon.engine.head import LabelValues, label_values
from letheon.engine.population import Population
from letheon.engine.values import values_of_states
from letheon.objective.parts import compose, needs_of
from letheon.objective.values import RoleCounts, TokenValues, roles_of
from letheon.training.state import Run
from letheon.training.step import DeviceParts, sum_parts
from letheon.unlearning.problem import Problem, whole_counts

MOST_TOKENS = {"cpu": 1024}
"""Tokens that go through the model at once: on a CPU, where products of so many rows run at full rate, more only leave
the caches; elsewhere all that there are."""


def accumulate_together(
    population: Population, runs: Mapping[int, Run[Problem]], rows: Mapping[int, Sequence[int]]
) -> dict[int, tuple[DeviceParts, int]]:
    """Add the gradients of one step of each of `runs` to its own parameters; both arguments are by run.

    Returns of each run what `step.add_gradients` does: its unweighted terms and the tokens it read. A run's step of
    more tokens than its `max_batch_tokens` is computed in pieces, as it is alone; a pass takes one piece of each.
    """
    pieces = {m: run.job.batches(rows[m], max_tokens=run.settings.max_batch_tokens) for m, run in runs.items()}
    counts = {m: whole_counts(found) for m, found in pieces.items()}
    found = {m: _parts_without_tokens(run, pieces[m], counts[m]) for m, run in runs.items()}
    for present in _passes({m: [batch for batch in of_one if len(batch.labels)] for m, of_one in pieces.items()}):
        for m, parts in zip(present, _add_gradients(population, runs, present, counts), strict=True):
            found[m].append(parts)
    return {m: (sum_parts(found[m]), sum(batch.num_tokens for batch in pieces[m])) for m in runs}


def _parts_without_tokens(run: Run[Problem], pieces: Sequence[PackedBatch], whole: RoleCounts) -> list[DeviceParts]:
    """The parts of the pieces without an answer token, which go through no model and leave no gradient."""
    empty = [batch for batch in pieces if not len(batch.labels)]
    return [run.job.loss_of(batch, whole, run.factors).parts for batch in empty]


def terms_together(problems: Sequence[Problem], batches: Sequence[PackedBatch]) -> list[TokenValues]:
    """Return `token_values` of each problem's batch, all from one pass through trunk and head (on path "packed")."""
    engine = problems[0].engine
    whole = join(batches)
    states = engine.states(whole)
    of_labels = label_values(states, whole.labels, engine.head)
    # Split, not sliced: the gradient of a slice is as large as the whole.
    sizes = [len(batch.labels) for batch in batches]
    of_each = (states.split(sizes), of_labels.label_logits.split(sizes), of_labels.log_normalisers.split(sizes))
    return [
        values_of_states(engine, problem.reference, batch, own, LabelValues(*label), needs=needs_of(problem.terms))
        for problem, batch, own, *label in zip(problems, batches, *of_each, strict=True)
    ]


def _passes(pieces: Mapping[int, Sequence[PackedBatch]]) -> Iterator[dict[int, PackedBatch]]:
    """Yield what goes through the model at once: at most one piece of each run, and no more than pays."""
    for number in range(max(map(len, pieces.values()), default=0)):
        present = {m: batches[number] for m, batches in pieces.items() if number < len(batches)}
        chosen = list(present)
        most = MOST_TOKENS.get(present[chosen[0]].labels.device.type, 2**62)
        for group in token_groups([present[m].num_tokens for m in chosen], most):
            yield {chosen[index]: present[chosen[index]] for index in group}


def _add_gradients(
    population: Population,
    runs: Mapping[int, Run[Problem]],
    batches: Mapping[int, PackedBatch],
    counts: Mapping[int, RoleCounts],
) -> list[DeviceParts]:
    """One forward and backward; returns the parts of each run."""
    engine = runs[next(iter(batches))].job.engine
    with population.together(list(batches), list(batches.values()), engine):
        values = terms_together([runs[m].job for m in batches], list(batches.values()))
        losses = [
            compose(runs[m].job.terms, of_one, roles_of(batch, whole=counts[m]), factors=runs[m].factors)
            for (m, batch), of_one in zip(batches.items(), values, strict=True)
        ]
        torch.stack([loss.total for loss in losses]).sum().backward()
    return [{name: None if part is None else part.detach() for name, part in loss.parts.items()} for loss in losses]
