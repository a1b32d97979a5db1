"""The training loop, top to bottom."""

import math
import time
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator

from letheon.data.packing import PackedBatch, pack, token_groups
from letheon.data.rows import Row
from letheon.data.schedules import Schedule, steps_from, with_alternatives
from letheon.data.sequences import Sequence
from letheon.errors import DivergenceError, OutputError
from letheon.model.adapted import Adapted
from letheon.model.engine import Engine
from letheon.model.reference import ReferenceStore, token_terms
from letheon.objective.control import Control, State
from letheon.objective.methods import Alternatives, Term, compose, needs_of
from letheon.objective.terms import Counts, RoleCounts, count_roles, roles_of
from letheon.settings import UnlearnSettings
from letheon.training.checkpoint import (
    Checkpoint,
    Position,
    load_checkpoint,
    load_optimiser,
    optimiser_tensors,
    prune_checkpoints,
    save_checkpoint,
)
from letheon.training.interim import InterimScore, Probes, interim_score
from letheon.training.optimiser import build_optimiser, learning_rate_at, set_learning_rate
from letheon.training.resolve import steps_to_score, total_steps
from letheon.training.stopping import Clock, Interruption, Start, best, choose_kept, why_stop
from letheon.training.tracking import Log, Observer


@dataclass(frozen=True, slots=True)
class Problem:
    """All that is fixed while a run trains: rows are numbered forget rows first, then retain rows."""

    engine: Engine
    adapted: Adapted
    rows: Collection[Row]
    sequences: Collection[Sequence]
    """What is trained on: of each row the answer (span="text": all of it), then the alternatives of forget rows."""
    num_forget_rows: int
    reference: ReferenceStore
    terms: tuple[Term, ...]
    schedule: Schedule
    probes: Probes
    start: Start | None
    """None where no budget is set."""
    alternatives: Alternatives | None = None
    control: Control | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended; the model then holds the kept state."""

    reason: str
    step: int
    kept: InterimScore
    history: tuple[InterimScore, ...]
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Hooks:
    """Who hears of a run while it trains."""

    log: Log
    observer: Observer
    tracker: Accelerator | None = None
    on_best: Callable[[InterimScore], None] | None = None
    """Called whenever a state scores best so far, with the model holding it."""


@dataclass(slots=True)
class _Run:
    """What changes while a run trains, and who watches it."""

    problem: Problem
    settings: UnlearnSettings
    hooks: Hooks
    checkpoints: Path
    optimiser: torch.optim.Optimizer
    control: State
    step: int = 0
    num_tokens: int = 0
    history: list[InterimScore] = field(default_factory=list)

    @property
    def schedule(self) -> Schedule:
        return self.problem.schedule

    @property
    def epoch(self) -> float:
        return self.step / self.schedule.steps_per_epoch

    @property
    def total_steps(self) -> int:
        return total_steps(self.settings, self.schedule)

    @property
    def due(self) -> set[int]:
        return steps_to_score(self.settings, self.schedule)


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

    The model is scored and saved every `checkpoint_epochs` epochs, or at the epochs of `score_at`, and at the end;
    afterwards it holds the best scored state, or the last one with keep="last".

    Raises:
        DivergenceError: a loss or gradient is not finite; the checkpoints so far stay in place.
        OutputError: a checkpoint cannot be written.
    """
    run = _begin(problem, settings, hooks=hooks, checkpoints=checkpoints, resumed=resumed)
    due = run.due
    reason, slowest_s = why_stop(run.history, problem.start, settings) if run.history else None, 0.0
    with problem.engine.running():
        for step, rows in steps_from(run.schedule, run.step, end=run.total_steps):
            if reason is None and clock.is_over(next_s=slowest_s):
                reason = f"time limit of {settings.time_limit_s:g} s"
            if reason is None and interruption.signal_number is not None:
                reason = f"signal {interruption.signal_number}"
            if reason is not None:
                break
            began_s = clock.elapsed_s
            _take_step(run, _rows_of_step(problem, rows, epoch=step // run.schedule.steps_per_epoch))
            if run.step in due:
                _score_and_save(run)
                reason = why_stop(run.history, problem.start, settings)
            slowest_s = max(slowest_s, clock.elapsed_s - began_s)
        if not run.history or run.history[-1].step != run.step:
            _score_and_save(run)
    kept = choose_kept(run.history, problem.start, settings)
    if kept.step != run.step:
        _restore(run, kept)
    return Outcome(
        reason=reason or "finished", step=run.step, kept=kept, history=tuple(run.history), num_tokens=run.num_tokens
    )


def _begin(
    problem: Problem, settings: UnlearnSettings, *, hooks: Hooks, checkpoints: Path, resumed: Checkpoint | None
) -> _Run:
    control = problem.control.begin() if problem.control else {}
    run = _Run(problem, settings, hooks, checkpoints, _new_optimiser(problem, settings), control)
    if resumed is not None:
        problem.adapted.load_state(resumed.parameters)
        load_optimiser(run.optimiser, resumed.optimiser)
        run.step, run.num_tokens = resumed.position.step, resumed.position.num_tokens
        run.history, run.control = list(resumed.position.history), resumed.position.control
        # The score of the state that an interruption left is none that the whole run would have taken.
        run.history = _taken_when_due(run)
    return run


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


def _take_step(run: _Run, rows: Collection[int]) -> None:
    problem, settings = run.problem, run.settings
    began = time.monotonic()
    first, end = run.schedule.block(run.step)
    if run.step == first > 0:
        run.optimiser = _new_optimiser(problem, settings)
    learning_rate = learning_rate_at(
        run.step - first,
        total_steps=min(end, run.total_steps) - first,
        peak=settings.learning_rate,
        schedule=settings.learning_rate_schedule,
    )
    set_learning_rate(run.optimiser, learning_rate)
    factors = problem.control.factors(run.control) if problem.control else {}
    parts, num_tokens = accumulate(problem, rows, max_tokens=settings.max_batch_tokens, factors=factors)
    limit = settings.max_gradient_norm or float("inf")
    norm = float(torch.nn.utils.clip_grad_norm_(problem.adapted.parameters(), limit))
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
    loss = sum(term.weight * factors.get(term.name, 1.0) * (parts[term.name] or 0.0) for term in problem.terms)
    step = {"loss": loss, "learning_rate": learning_rate, "gradient_norm": norm}
    _tell(run, parts, step, num_tokens=num_tokens, duration_s=duration_s)


def _tell(
    run: _Run, parts: dict[str, float | None], step: dict[str, float], *, num_tokens: int, duration_s: float
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
    run.hooks.observer.step(run.step, run.total_steps, {**parts, "tok/s": num_tokens / max(duration_s, 1e-9)})
    if run.hooks.tracker is not None:
        known = {name: value for name, value in parts.items() if value is not None}
        run.hooks.tracker.log({**step, **known, **run.control}, step=run.step)


def accumulate(
    problem: Problem, rows: Collection[int], *, max_tokens: int, factors: Mapping[str, float] | None = None
) -> tuple[dict[str, float | None], int]:
    """Add the gradients of one step to the trained parameters; return the unweighted terms and the tokens read.

    A step of more than `max_tokens` tokens is computed in pieces, which add up to the same loss and gradient; terms
    that cannot be split are computed whole.
    """
    lengths = [len(problem.sequences[row].input_ids) for row in rows]
    splits = all(term.splits for term in problem.terms)
    groups = list(token_groups(lengths, max_tokens)) if splits else [list(range(len(rows)))]
    batches = [_pack(problem, [rows[i] for i in group]) for group in groups]
    whole = _whole_counts(batches)
    needs = needs_of(problem.terms)
    totals: dict[str, float | None] = {}
    for batch in batches:
        values = token_terms(problem.engine, problem.reference, batch, needs=needs)
        loss = compose(problem.terms, values, roles_of(batch, whole=whole), factors=factors)
        loss.total.backward()
        for name, part in loss.parts.items():
            totals[name] = None if part is None else (totals.get(name) or 0.0) + part.item()
    return totals, sum(lengths)


def _pack(problem: Problem, rows: Collection[int]) -> PackedBatch:
    batch = pack(
        [problem.sequences[row] for row in rows],
        is_forget=[row < problem.num_forget_rows for row in rows],
        is_alternative=[row >= len(problem.rows) for row in rows],
        row_index=rows,
    )
    return batch.to(problem.engine.model.device)


def _whole_counts(batches: Collection[PackedBatch]) -> RoleCounts:
    none = Counts(0, 0)
    return sum((count_roles(batch) for batch in batches), start=RoleCounts(none, none, none))


def _check_finite(problem: Problem, step: int, rows: Collection[int], values: dict[str, float | None]) -> None:
    broken = [name for name, value in values.items() if value is not None and not math.isfinite(value)]
    if broken:
        ids = ", ".join(_id_of(problem, row) for row in rows)
        raise DivergenceError(
            f"step {step + 1}: {', '.join(broken)} is not finite on rows {ids}; nothing was changed by this "
            "step and the last checkpoint is in place; lower --learning-rate, or set --max-gradient-norm 1"
        )


def _id_of(problem: Problem, row: int) -> str:
    if row < len(problem.rows):
        return problem.rows[row].id
    per_row = problem.alternatives.per_row if problem.alternatives else 1
    return f"{problem.rows[(row - len(problem.rows)) // per_row].id} (with another answer)"


def _score_and_save(run: _Run) -> None:
    problem, hooks = run.problem, run.hooks
    score = interim_score(problem.engine, problem.probes, step=run.step, epoch=run.epoch)
    run.history.append(score)
    is_best = best(run.history, problem.start, run.settings) is score
    hooks.log.write("interim", **asdict(score))
    membership = "" if score.membership is None else f"membership {score.membership:.3f}, "
    hooks.observer.note(
        f"epoch {score.epoch:g}: recall forget {score.forget_recall:.3f}, retain {score.retain_recall:.3f}, "
        f"{membership}score {score.score:.3f}"
    )
    position = Position(
        step=run.step,
        num_tokens=run.num_tokens,
        log_bytes=hooks.log.flush(),
        history=tuple(run.history),
        control=dict(run.control),
    )
    checkpoint = Checkpoint(position, problem.adapted.trained(), optimiser_tensors(run.optimiser))
    save_checkpoint(checkpoint, run.checkpoints)
    histories = (run.history, _taken_when_due(run))
    kept = {choose_kept(found, problem.start, run.settings).step for found in histories if found}
    prune_checkpoints(run.checkpoints, keep_steps={run.step, *kept, *_wanted(run)})
    if is_best and hooks.on_best is not None:
        hooks.on_best(score)


def _taken_when_due(run: _Run) -> list[InterimScore]:
    """The scores so far, but one that was taken because the run was interrupted or out of time."""
    due = {*run.due, run.total_steps}
    return [score for score in run.history if score.step in due]


def _wanted(run: _Run) -> set[int]:
    """Steps asked for by name: their checkpoints stay."""
    return run.due if run.settings.score_at is not None else set()


def _restore(run: _Run, kept: InterimScore) -> None:
    folder = run.checkpoints / f"step-{kept.step}"
    saved = load_checkpoint(folder)
    if saved is None:
        raise OutputError(f"{folder}: the kept checkpoint was damaged after it was written; run again")
    run.problem.adapted.load_state(saved.parameters)
