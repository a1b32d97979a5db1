"""The training loop, top to bottom: it trains any job and knows neither what is forgotten nor what is kept."""

import time
from pathlib import Path

from letheon.errors import DivergenceError
from letheon.processes import here, highest
from letheon.signals import Interruption
from letheon.training.checkpoint import (
    Checkpoint,
    Position,
    SaveClock,
    checkpoint_of,
    load_optimiser,
    optimiser_tensors,
    prune_checkpoints,
    save_checkpoint,
)
from letheon.training.course import Course, LoopSettings
from letheon.training.job import Job
from letheon.training.judge import StateScore, best
from letheon.training.randomness import dropouts_of
from letheon.training.state import Hooks, JobT, Outcome, Run
from letheon.training.step import take_step
from letheon.training.stopping import Clock, Pace


def train(run: Run[Job], *, clock: Clock, interruption: Interruption) -> Outcome:
    """Train until the steps are done, the time is up, the scores say so or the process is asked to end.

    The model is scored and saved where its course says, and at the end, and saved alone every `checkpoint_minutes`;
    afterwards it holds the state that the course keeps.

    Raises:
        DivergenceError: a loss or gradient is not finite; the checkpoints so far stay in place.
        OutputError: a checkpoint cannot be written.
    """
    with run.job.running():
        while goes_on(run, clock, interruption):
            take_step(run)
            if not score_if_due(run) and run.saves.is_due:
                save(run)
        score_at_end(run)
    return end(run)


def begin(
    job: JobT,
    course: Course,
    settings: LoopSettings,
    *,
    hooks: Hooks,
    checkpoints: Path | None,
    resumed: Checkpoint | None = None,
    num_scorings: int = 1,
) -> Run[JobT]:
    """Return the run of a job before its first step, or where the checkpoint left it."""
    control = job.control.begin() if job.control else {}
    optimiser = course.optimiser(job.adapted.parameters())
    run = Run(job, settings, course, hooks, checkpoints, optimiser, control, num_scorings=num_scorings)
    run.pace = Pace(job.forward_token_s)
    run.dropouts = dropouts_of(job.adapted.model)
    run.saves = SaveClock(settings.checkpoint_minutes if checkpoints and here().is_first else None)
    if resumed is not None:
        job.adapted.load_state(resumed.parameters)
        load_optimiser(run.optimiser, resumed.optimiser)
        run.step, run.num_tokens = resumed.position.step, resumed.position.num_tokens
        run.history, run.control = list(resumed.position.history), resumed.position.control
        run.norms = list(resumed.position.norms)
        run.reason = course.why_stop(run.history) if run.history else None
    return run


def goes_on(run: Run[Job], clock: Clock, interruption: Interruption) -> bool:
    """Return whether the run takes another step; if not for lack of steps, `run.reason` says why."""
    if run.step >= run.total_steps:
        return False
    if run.reason is None:
        run.reason = _why_end(run, clock, interruption)
    return run.reason is None


def _why_end(run: Run[Job], clock: Clock, interruption: Interruption) -> str | None:
    """Whether the time is up or a signal came, in this process or another."""
    # What the next step takes is only asked for where there is a limit: it counts the tokens of all rows.
    is_over = clock.limit_s is not None and clock.is_over(next_s=_step_s(run) + run.scoring_s)
    is_over_anywhere, signal_number = highest(int(is_over), interruption.signal_number or 0)
    if is_over_anywhere:
        return f"time limit of {run.settings.time_limit_s:g} s"
    if signal_number:
        interruption.signal_number = signal_number
        return f"signal {signal_number}"
    return None


def _step_s(run: Run[Job]) -> float:
    """How long the next step will take."""
    return run.pace.step_s(run.job.num_tokens_of(run.rows))


def is_over(position: Position, course: Course) -> bool:
    """Return whether a run that stands there has no step to take any more."""
    stops = position.history and course.why_stop(position.history) is not None
    return bool(stops) or position.step >= course.total_steps


def score_if_due(run: Run[Job]) -> bool:
    """Score and save the run where its last step is one after which it is to be, and see whether it should end.

    Returns whether it was.
    """
    if not run.course.is_due(run.step, run.history):
        return False
    _score_and_save(run)
    run.reason = run.course.why_stop(run.history)
    return True


def score_at_end(run: Run[Job]) -> None:
    """Score and save the state in which the run ends, unless that has been done."""
    if not run.history or run.history[-1].step != run.step:
        _score_and_save(run)


def end(run: Run[Job]) -> Outcome:
    """Put the state that is kept into the model, and return how the run went."""
    kept = run.course.kept(run.history)
    if kept.step != run.step:
        _restore(run, kept)
    return Outcome(
        reason=run.reason or "finished",
        step=run.step,
        kept=kept,
        history=tuple(run.history),
        num_tokens=run.num_tokens,
    )


def broken_parameters(run: Run[Job]) -> list[str]:
    """Name the trained parameters that are not finite."""
    return [name for name, value in run.job.adapted.trained().items() if not value.isfinite().all()]


def _check_state(run: Run[Job]) -> None:
    """Refuse to score and save parameters that are not finite: the checkpoint before them is the last good one."""
    broken = broken_parameters(run)
    if broken and not run.course.ends_on_collapse:
        rows = run.job.rows_of_step(run.step - 1, run.factors)
        raise DivergenceError(
            f"step {run.step}: {broken[0]} became NaN or infinite after the update; rows in that step: "
            f"{run.job.ids_of(rows)}; earlier checkpoints are intact; {run.job.advice}"
        )


def _score_and_save(run: Run[Job]) -> None:
    """Score and save the present state; one that the whole run would not score is saved without its score."""
    _check_state(run)
    is_due = run.step == run.total_steps or run.course.is_due(run.step, run.history)
    if not is_due:
        save(run)
    score = _score(run)
    back = run.course.goes_back_to(run.history)
    if back is not None:
        _go_back(run, back)
    if is_due:
        save(run)
    if back is None and run.hooks.on_best is not None and best(run.history, run.job.judge) is score:
        run.hooks.on_best(score)
    run.hooks.observer.scored(score)


def _score(run: Run[Job]) -> StateScore:
    hooks, judge, began = run.hooks, run.job.judge, time.monotonic()
    score = judge.score(step=run.step, epoch=run.epoch, progress=hooks.observer.stage)
    run.pace.add_scoring(time.monotonic() - began)
    run.history.append(score)
    hooks.log.write("interim", **score.flat())
    hooks.observer.note(judge.describe(score))
    return score


def save(run: Run[Job]) -> None:
    """Save the present state, and remove the checkpoints that are no longer needed.

    Raises:
        DivergenceError: it is not finite.
        OutputError: it cannot be written.
    """
    _check_state(run)
    if run.checkpoints is None or not here().is_first:
        return
    position = Position(
        step=run.step,
        num_tokens=run.num_tokens,
        log_events=run.hooks.log.flush(),
        history=tuple(run.history),
        control=dict(run.control),
        norms=tuple(run.norms),
        read=dict(run.job.read),
    )
    with run.saves.saving():
        save_checkpoint(
            Checkpoint(position, run.job.adapted.trained(), optimiser_tensors(run.optimiser)), run.checkpoints
        )
    prune(run)


def prune(run: Run[Job]) -> None:
    """Remove all checkpoints but the newest few, the one to keep, and those held by the run or its course."""
    if run.checkpoints is not None and here().is_first:
        steps = run.course.needed(run.history) | run.course.held_steps | run.held_steps
        prune_checkpoints(run.checkpoints, keep_last=run.settings.keep_checkpoints, keep_steps=steps)


def _go_back(run: Run[Job], score: StateScore) -> None:
    """Go on from an earlier state, with the optimiser as it was; steps are counted and drawn as if it had not.

    What was usual for a gradient is forgotten: the latest ones are of what is left behind.
    """
    saved = _restore(run, score)
    load_optimiser(run.optimiser, saved.optimiser)
    run.control, run.norms = saved.position.control, []
    message = f"epoch {run.epoch:g}: too much is lost, so training goes back to epoch {score.epoch:g}"
    run.hooks.log.write("note", message=message)
    run.hooks.observer.note(message)


def _restore(run: Run[Job], score: StateScore) -> Checkpoint:
    assert run.checkpoints is not None, "without checkpoints the last state is kept"
    saved = checkpoint_of(run.checkpoints, score.step)
    run.job.adapted.load_state(saved.parameters)
    return saved
