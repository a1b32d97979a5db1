"""One step, top to bottom: rows, pieces, forward, backward, the optimiser, and its report."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor

from letheon.data.packing import PackedBatch
from letheon.errors import DivergenceError
from letheon.processes import here
from letheon.training.course import RECENT_NORMS
from letheon.training.job import Factors, Job
from letheon.training.memory import within_memory
from letheon.training.optimiser import set_learning_rate
from letheon.training.randomness import dropout_of_step, dropped_by_row
from letheon.training.state import Run
from letheon.training.together import add_up

Parts = dict[str, float | None]
"""Unweighted terms of a loss by name, None where the step has no token of their role."""
DeviceParts = dict[str, Tensor | None]
"""The same as scalars on the model's device, without gradients: reading one makes the host wait for the device."""
_NORM = "gradient_norm"


def take_step(run: Run[Job]) -> None:
    """Take one step.

    Raises:
        DivergenceError: a term or the gradient is not finite; nothing is changed then.
        SettingsError: a GPU's memory is not enough for it.
    """
    began, rows = time.monotonic(), run.rows

    def compute(max_tokens: int) -> tuple[DeviceParts, int]:
        with dropout_of_step(run.dropouts, seed=run.settings.seed, step=run.step):
            return add_gradients(run.job, rows, max_tokens=max_tokens, factors=run.factors, within=within)

    within = partial(dropped_by_row, run.dropouts, seed=run.settings.seed, step=run.step)
    parts, num_tokens = within_memory(run, rows, compute)
    if here().size > 1:
        parts, num_tokens = add_up(run.job.adapted.parameters(), run.job.part_names, parts, num_tokens)
    update(run, rows, parts, num_tokens=num_tokens, began=began)


def add_gradients(
    job: Job,
    rows: Sequence[int],
    *,
    max_tokens: int,
    factors: Factors | None = None,
    within: Callable[[PackedBatch], AbstractContextManager[None]] = lambda _: nullcontext(),
) -> tuple[DeviceParts, int]:
    """Add the gradients of one step to the trained parameters; return the unweighted terms and the tokens read.

    A step of more than `max_tokens` tokens is computed in pieces, each `within` a context of its own, which add up to
    the same loss and gradient; terms that cannot be split are computed whole. Of several processes each adds those of
    its share. A step without answer tokens leaves no gradient, so that it changes neither parameters nor the optimiser.
    """
    pieces = job.pieces(rows, max_tokens=max_tokens)
    found: list[DeviceParts] = []
    for piece in pieces:
        with within(piece.batch):
            loss = piece.loss(factors or {})
            if len(piece.batch.labels):
                loss.total.backward()
        found.append({name: None if part is None else part.detach() for name, part in loss.parts.items()})
    return sum_parts(found), sum(piece.batch.num_tokens for piece in pieces)


def sum_parts(pieces: Sequence[DeviceParts]) -> DeviceParts:
    """Return the parts of a step from those of its pieces, which a role is either in all of or in none of."""
    known = {name: [piece[name] for piece in pieces] for name in (pieces[0] if pieces else ())}
    return {name: _sum([part for part in parts if part is not None]) for name, parts in known.items()}


def _sum(parts: Sequence[Tensor]) -> Tensor | None:
    return torch.stack(list(parts)).sum() if parts else None


def accumulate(job: Job, rows: Sequence[int], *, max_tokens: int, factors: Factors | None = None) -> tuple[Parts, int]:
    """Add the gradients of one step as `add_gradients` does, and return its terms as numbers."""
    parts, num_tokens = add_gradients(job, rows, max_tokens=max_tokens, factors=factors)
    return on_host(parts), num_tokens


def on_host(parts: DeviceParts) -> Parts:
    """Return the terms as numbers, which takes one copy from the device."""
    known = {name: part for name, part in parts.items() if part is not None}
    values = dict(zip(known, torch.stack(list(known.values())).tolist(), strict=True)) if known else {}
    return {name: values.get(name) for name in parts}


def update(run: Run[Job], rows: Sequence[int], terms: DeviceParts, *, num_tokens: int, began: float) -> None:
    """Take the step whose gradients lie in the trained parameters and whose unweighted terms are `terms`.

    `began` is the time, by the monotonic clock, at which the step began.

    Raises:
        DivergenceError: a term or the gradient is not finite; nothing is changed then.
    """
    job, factors = run.job, run.factors
    learning_rate = _set_learning_rate(run)
    trained = [parameter for group in run.optimiser.param_groups for parameter in group["params"]]
    limit = run.course.max_gradient_norm(run.step, run.norms)
    norm = torch.nn.utils.clip_grad_norm_(trained, limit or float("inf"))
    # All that the host reads of a step comes over at once: each copy would wait for the device.
    parts = on_host({**terms, _NORM: norm.to(trained[0].device)})
    _check_finite(job, run.step, rows, parts)
    gradient_norm = parts.pop(_NORM) or 0.0
    run.optimiser.step()
    job.adapted.update_model()
    run.optimiser.zero_grad(set_to_none=True)
    run.step += 1
    run.num_tokens += num_tokens
    run.norms = [*run.norms, gradient_norm][-RECENT_NORMS:]
    if job.control:
        ends_epoch = run.step % job.schedule.steps_per_epoch == 0
        run.control = job.control.after_step(run.control, parts, ends_epoch=ends_epoch)
    duration_s = time.monotonic() - began
    run.pace.add_step(duration_s, num_tokens=num_tokens)
    step = {"loss": job.total(parts, factors), "learning_rate": learning_rate, _NORM: gradient_norm}
    _tell(run, parts, step, num_tokens=num_tokens, duration_s=duration_s)


def _set_learning_rate(run: Run[Job]) -> float:
    """Make the optimiser ready for the next step, a new one where a block begins, and return the learning rate."""
    first, _ = run.job.schedule.block(run.step)
    if run.step == first > 0:
        run.optimiser = run.course.optimiser(run.job.adapted.parameters())
    learning_rate = run.course.learning_rate(run.step, run.history)
    set_learning_rate(run.optimiser, learning_rate)
    return learning_rate


def _check_finite(job: Job, step: int, rows: Sequence[int], values: Mapping[str, float | None]) -> None:
    broken = [name for name, value in values.items() if value is not None and not math.isfinite(value)]
    if broken:
        raise DivergenceError(
            f"step {step + 1}: {', '.join(broken)} became NaN or infinite; rows in that step: "
            f"{job.ids_of(rows)}; the step changed nothing, and earlier checkpoints are intact; {job.advice}"
        )


def _tell(run: Run[Job], parts: Parts, step: dict[str, float], *, num_tokens: int, duration_s: float) -> None:
    control = {"control": run.control} if run.control else {}
    run.hooks.log.write(
        "step",
        step=run.step,
        epoch=run.epoch,
        terms=parts,
        **step,
        **control,
        num_tokens=num_tokens,
        duration_s=round(duration_s, 6),
    )
    speed = num_tokens / max(duration_s, 1e-9)
    run.hooks.observer.step(run.step, run.total_steps, {"loss": step["loss"], **parts, "tok/s": speed})
    if run.hooks.tracker is not None:
        known = {name: value for name, value in parts.items() if value is not None}
        run.hooks.tracker.log({**step, **known, **run.control}, step=run.step)
