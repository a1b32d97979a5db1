"""The training loop, top to bottom."""

import math
import time
from collections.abc import Mapping
from collections.abc import Sequence as Collection
from dataclasses import asdict
from pathlib import Path

import torch

from letheon.data.packing import PackedBatch, pack, token_groups
from letheon.data.schedules import with_alternatives
from letheon.errors import DivergenceError, OutputError
from letheon.model.reference import token_terms
from letheon.objective.methods import Loss, compose, needs_of
from letheon.objective.terms import Counts, RoleCounts, count_roles, roles_of
from letheon.settings import UnlearnSettings
from letheon.signals import Interruption
from letheon.training.checkpoint import (
    Checkpoint,
    Position,
    SaveClock,
    load_checkpoint,
    load_optimiser,
    optimiser_tensors,
    prune_checkpoints,
    save_checkpoint,
    step_folder,
)
from letheon.training.interim import InterimScore, interim_score
from letheon.training.optimiser import build_optimiser, learning_rate_at, set_learning_rate
from letheon.training.randomness import dropout_of_step, dropouts_of
from letheon.training.resolve import total_steps
from letheon.training.state import Hooks, Outcome, Problem, Run
from letheon.training.stopping import Clock, Pace, best, choose_kept, why_stop

_CALMER = "lower --learning-rate, or set --max-gradient-norm 1"


def train(
    problem: Problem,
    settings: UnlearnSettings,
    *,
    hooks: Hooks,
    clock: Clock,
    interruption: Interruption,
    checkpoints: Path,
    resumed: Checkpoint | None = None,
) -> Outcome:
    """Train until the steps are done, the time is up, the scores say so or the process is asked to end.

    The model is scored and saved every `checkpoint_epochs` epochs or `checkpoint_steps` steps, or at the epochs of
    `score_at`, and at the end, and saved alone every `checkpoint_minutes`; afterwards it holds the best scored state,
    or the last with keep="last".

    Raises:
        DivergenceError: a loss or gradient is not finite; the checkpoints so far stay in place.
        OutputError: a checkpoint cannot be written.
    """
    run = begin(problem, settings, hooks=hooks, checkpoints=checkpoints, resumed=resumed)
    with problem.engine.running():
        while goes_on(run, clock, interruption):
            _take_step(run)
            if not score_if_due(run) and run.saves.is_due:
                save(run)
        score_at_end(run)
    return end(run)


def begin(
    problem: Problem, settings: UnlearnSettings, *, hooks: Hooks, checkpoints: Path, resumed: Checkpoint | None
) -> Run:
    """Return the run before its first step, or where the checkpoint left it."""
    control = problem.control.begin() if problem.control else {}
    run = Run(problem, settings, hooks, checkpoints, _new_optimiser(problem, settings), control)
    run.pace = Pace(problem.forward_token_s)
    run.dropouts, run.saves = dropouts_of(problem.adapted.model), SaveClock(settings.checkpoint_minutes)
    if resumed is not None:
        problem.adapted.load_state(resumed.parameters)
        load_optimiser(run.optimiser, resumed.optimiser)
        run.step, run.num_tokens = resumed.position.step, resumed.position.num_tokens
        run.history, run.control = list(resumed.position.history), resumed.position.control
        run.reason = why_stop(run.history, problem.start, settings) if run.history else None
    return run


def goes_on(run: Run, clock: Clock, interruption: Interruption) -> bool:
    """Return whether the run takes another step; if not for lack of steps, `run.reason` says why."""
    if run.step >= run.total_steps:
        return False
    if run.reason is None and clock.is_over(next_s=_step_s(run) + run.scoring_s):
        run.reason = f"time limit of {run.settings.time_limit_s:g} s"
    if run.reason is None and interruption.signal_number is not None:
        run.reason = f"signal {interruption.signal_number}"
    return run.reason is None


def _step_s(run: Run) -> float:
    """How long the next step will take."""
    return run.pace.step_s(sum(len(run.problem.sequences[row].input_ids) for row in rows_of_next_step(run)))


def is_over(position: Position, problem: Problem, settings: UnlearnSettings) -> bool:
    """Return whether a run that stands there has no step to take any more."""
    stops = position.history and why_stop(position.history, problem.start, settings) is not None
    return bool(stops) or position.step >= total_steps(settings, problem.schedule)


def score_if_due(run: Run) -> bool:
    """Score and save the run where its last step is one after which it is to be, and see whether it should end.

    Returns whether it was.
    """
    if run.step not in run.due:
        return False
    _score_and_save(run)
    run.reason = why_stop(run.history, run.problem.start, run.settings)
    return True


def score_at_end(run: Run) -> None:
    """Score and save the state in which the run ends, unless that has been done."""
    if not run.history or run.history[-1].step != run.step:
        _score_and_save(run)


def end(run: Run) -> Outcome:
    """Put the state that is kept into the model, and return how the run went."""
    kept = choose_kept(run.history, run.problem.start, run.settings)
    if kept.step != run.step:
        _restore(run, kept)
    return Outcome(
        reason=run.reason or "finished",
        step=run.step,
        kept=kept,
        history=tuple(run.history),
        num_tokens=run.num_tokens,
    )


def _new_optimiser(problem: Problem, settings: UnlearnSettings) -> torch.optim.Optimizer:
    return build_optimiser(
        problem.adapted.parameters(),
        name=settings.optimiser,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
    )


def _rows_of_step(problem: Problem, rows: Collection[int], *, epoch: int) -> list[int]:
    chosen = problem.alternatives
    if chosen is None:
        return list(rows)
    return with_alternatives(
        rows,
        num_forget=problem.num_forget_rows,
        num_rows=len(problem.rows),
        per_row=chosen.per_row,
        replace=chosen.replace,
        epoch=epoch,
    )


def rows_of_next_step(run: Run) -> list[int]:
    """Return the rows of the step that `run` takes next, other answers included."""
    return _rows_of_step(run.problem, run.schedule.rows(run.step), epoch=run.step // run.schedule.steps_per_epoch)


def _take_step(run: Run) -> None:
    began, rows = time.monotonic(), rows_of_next_step(run)
    with dropout_of_step(run.dropouts, seed=run.settings.seed, step=run.step):
        parts, num_tokens = accumulate(run.problem, rows, max_tokens=run.settings.max_batch_tokens, factors=run.factors)
    update(run, rows, parts, num_tokens=num_tokens, began=began)


def update(run: Run, rows: Collection[int], parts: dict[str, float | None], *, num_tokens: int, began: float) -> None:
    """Take the step whose gradients lie in the trained parameters and whose unweighted terms are `parts`.

    `began` is the time, by the monotonic clock, at which the step began.

    Raises:
        DivergenceError: a term or the gradient is not finite; nothing is changed then.
    """
    problem, settings, factors = run.problem, run.settings, run.factors
    learning_rate = _set_learning_rate(run)
    limit = settings.max_gradient_norm or float("inf")
    trained = [parameter for group in run.optimiser.param_groups for parameter in group["params"]]
    norm = float(torch.nn.utils.clip_grad_norm_(trained, limit))
    _check_finite(problem, run.step, rows, {**parts, "gradient_norm": norm})
    run.optimiser.step()
    problem.adapted.settle()
    run.optimiser.zero_grad(set_to_none=True)
    run.step += 1
    run.num_tokens += num_tokens
    if problem.control:
        ends_epoch = run.step % run.schedule.steps_per_epoch == 0
        run.control = problem.control.after_step(run.control, parts, ends_epoch=ends_epoch)
    duration_s = time.monotonic() - began
    run.pace.add_step(duration_s, num_tokens=num_tokens)
    loss = sum(term.weight * factors.get(term.name, 1.0) * (parts[term.name] or 0.0) for term in problem.terms)
    step = {"loss": loss, "learning_rate": learning_rate, "gradient_norm": norm}
    _tell(run, parts, step, num_tokens=num_tokens, duration_s=duration_s)


def _set_learning_rate(run: Run) -> float:
    """Make the optimiser ready for the next step, a new one where a block begins, and return the learning rate."""
    settings = run.settings
    first, end = run.schedule.block(run.step)
    if run.step == first > 0:
        run.optimiser = _new_optimiser(run.problem, settings)
    learning_rate = learning_rate_at(
        run.step - first,
        total_steps=min(end, run.total_steps) - first,
        peak=settings.learning_rate,
        schedule=settings.learning_rate_schedule,
        warm_up_steps=round(settings.warm_up * run.schedule.steps_per_epoch),
    )
    set_learning_rate(run.optimiser, learning_rate)
    return learning_rate


def _tell(
    run: Run, parts: dict[str, float | None], step: dict[str, float], *, num_tokens: int, duration_s: float
) -> None:
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


def accumulate(
    problem: Problem, rows: Collection[int], *, max_tokens: int, factors: Mapping[str, float] | None = None
) -> tuple[dict[str, float | None], int]:
    """Add the gradients of one step to the trained parameters; return the unweighted terms and the tokens read.

    A step of more than `max_tokens` tokens is computed in pieces, which add up to the same loss and gradient; terms
    that cannot be split are computed whole. A step without answer tokens leaves no gradient, so that it changes
    neither parameters nor the optimiser.
    """
    batches = pieces_of(problem, rows, max_tokens=max_tokens)
    whole = whole_counts(batches)
    totals: dict[str, float | None] = {}
    for batch in batches:
        loss = loss_of_piece(problem, batch, whole, factors=factors)
        if len(batch.labels):
            loss.total.backward()
        for name, part in loss.parts.items():
            totals[name] = None if part is None else (totals.get(name) or 0.0) + part.item()
    return totals, sum(batch.num_tokens for batch in batches)


def loss_of_piece(
    problem: Problem, batch: PackedBatch, whole: RoleCounts, *, factors: Mapping[str, float] | None = None
) -> Loss:
    """Return the loss of a piece of a step whose counts are `whole`."""
    values = token_terms(problem.engine, problem.reference, batch, needs=needs_of(problem.terms))
    return compose(problem.terms, values, roles_of(batch, whole=whole), factors=factors)


def pieces_of(problem: Problem, rows: Collection[int], *, max_tokens: int) -> list[PackedBatch]:
    """Return the batches, of at most `max_tokens` tokens where the terms can be split, that a step is computed in."""
    lengths = [len(problem.sequences[row].input_ids) for row in rows]
    splits = all(term.splits for term in problem.terms)
    groups = list(token_groups(lengths, max_tokens)) if splits else [list(range(len(rows)))]
    return [_pack(problem, [rows[i] for i in group]) for group in groups]


def _pack(problem: Problem, rows: Collection[int]) -> PackedBatch:
    batch = pack(
        [problem.sequences[row] for row in rows],
        is_forget=[row < problem.num_forget_rows for row in rows],
        is_alternative=[row >= len(problem.rows) for row in rows],
        row_index=rows,
    )
    return batch.to(problem.engine.model.device)


def whole_counts(batches: Collection[PackedBatch]) -> RoleCounts:
    """Return the counts of a step that is computed in these batches."""
    none = Counts(0, 0)
    return sum((count_roles(batch) for batch in batches), start=RoleCounts(none, none, none))


def _check_finite(problem: Problem, step: int, rows: Collection[int], values: dict[str, float | None]) -> None:
    broken = [name for name, value in values.items() if value is not None and not math.isfinite(value)]
    if broken:
        raise DivergenceError(
            f"step {step + 1}: {', '.join(broken)} became NaN or infinite; rows in that step: "
            f"{problem.ids_of(rows)}; the step changed nothing, and earlier checkpoints are intact; {_CALMER}"
        )


def _check_state(run: Run) -> None:
    """Refuse to score and save parameters that are not finite: the checkpoint before them is the last good one."""
    broken = broken_parameters(run)
    budgets = (run.settings.retain_budget, run.settings.text_budget)
    if broken and budgets == (None, None):  # with a budget a run ends as a collapse, in the best state before it
        rows = _rows_of_step(
            run.problem, run.schedule.rows(run.step - 1), epoch=(run.step - 1) // run.schedule.steps_per_epoch
        )
        raise DivergenceError(
            f"step {run.step}: {broken[0]} became NaN or infinite after the update; rows in that step: "
            f"{run.problem.ids_of(rows)}; earlier checkpoints are intact; {_CALMER}"
        )


def broken_parameters(run: Run) -> list[str]:
    """Name the trained parameters that are not finite."""
    return [name for name, value in run.problem.adapted.trained().items() if not value.isfinite().all()]


def _score_and_save(run: Run) -> None:
    """Score and save the present state; one that the whole run would not score is saved without its score."""
    _check_state(run)
    is_due = run.step in run.due or run.step == run.total_steps
    if not is_due:
        save(run)
    score = _score(run)
    if is_due:
        save(run)
    if run.hooks.on_best is not None and best(run.history, run.problem.start, run.settings) is score:
        run.hooks.on_best(score)
    run.hooks.observer.scored(score)


def _score(run: Run) -> InterimScore:
    hooks, began = run.hooks, time.monotonic()
    score = interim_score(
        run.problem.engine, run.problem.probes, step=run.step, epoch=run.epoch, progress=hooks.observer.stage
    )
    run.pace.add_scoring(time.monotonic() - began)
    run.history.append(score)
    hooks.log.write("interim", **asdict(score))
    membership = "" if score.membership is None else f"membership {score.membership:.3f}, "
    divergence = "" if score.retain_kl is None else f"retain KL {score.retain_kl:.3g} nats, "
    hooks.observer.note(
        f"epoch {score.epoch:g}: recall forget {score.forget_recall:.3f}, retain {score.retain_recall:.3f}, "
        f"{membership}{divergence}score {score.score:.3f}"
    )
    return score


def save(run: Run) -> None:
    """Save the present state, and remove the checkpoints that are no longer needed.

    Raises:
        DivergenceError: it is not finite.
        OutputError: it cannot be written.
    """
    _check_state(run)
    position = Position(
        step=run.step,
        num_tokens=run.num_tokens,
        log_events=run.hooks.log.flush(),
        history=tuple(run.history),
        control=dict(run.control),
        read=dict(run.problem.read),
    )
    with run.saves.saving():
        save_checkpoint(
            Checkpoint(position, run.problem.adapted.trained(), optimiser_tensors(run.optimiser)), run.checkpoints
        )
    prune(run)


def prune(run: Run) -> None:
    """Remove all checkpoints but the newest few, the one to keep, those held and those that `score_at` names."""
    wanted = run.due if run.settings.score_at is not None else set()
    steps = steps_to_keep(run) | wanted | run.held_steps
    prune_checkpoints(run.checkpoints, keep_last=run.settings.keep_checkpoints, keep_steps=steps)


def steps_to_keep(run: Run) -> frozenset[int]:
    """Return the step of the state that would be kept if the run ended now; empty before the first scoring."""
    return frozenset({choose_kept(run.history, run.problem.start, run.settings).step} if run.history else ())


def _restore(run: Run, kept: InterimScore) -> None:
    folder = step_folder(run.checkpoints, kept.step)
    saved = load_checkpoint(folder)
    if saved is None:
        raise OutputError(
            f"{folder}: the checkpoint to keep was damaged after it was written; run again with --resume, which makes "
            f"it again from an earlier one"
        )
    run.problem.adapted.load_state(saved.parameters)
