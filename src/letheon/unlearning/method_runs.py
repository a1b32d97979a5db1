"""Train the runs of a method, one for most methods, and combine their results."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryFile

from accelerate import Accelerator
from torch import Tensor

from letheon.model.adapted import Adapted
from letheon.model.adapters import LoraAdapter
from letheon.objective.catalogue import get_method
from letheon.objective.methods import Method
from letheon.processes import from_first, here, highest
from letheon.settings import UnlearnSettings
from letheon.signals import Interruption
from letheon.storage.run_folder import CHECKPOINTS_FOLDER, LOG_FILE, MEMBER_PREFIX
from letheon.training.checkpoint import Checkpoint, Position, checkpoint_of, drop_checkpoints, newest_checkpoint
from letheon.training.course import Course
from letheon.training.loop import begin, train
from letheon.training.state import Hooks, Outcome, Run
from letheon.training.stopping import Clock
from letheon.training.tracking import Log, open_log, trackers
from letheon.unlearning.attempts import recorded_attempt
from letheon.unlearning.automatic import course_of
from letheon.unlearning.dial.record import log_dial
from letheon.unlearning.dial.scaling import scaling_of
from letheon.unlearning.dial.search import FIRST_SCALES
from letheon.unlearning.dial.turn import Dialled, turn_dial
from letheon.unlearning.prepare import Prepared
from letheon.unlearning.problem import Problem
from letheon.unlearning.record import log_end, log_start
from letheon.unlearning.resolve import coefficients_of, terms_of


def train_all(
    prepared: Prepared,
    settings: UnlearnSettings,
    method: Method,
    resumes: bool,
    *,
    clock: Clock,
    interruption: Interruption,
    hooks: Callable[..., Hooks],
) -> tuple[Outcome, Dialled | None]:
    """Train each run of the method, combine the results and set the dial.

    The second value says how its scale was chosen; None where it was not.
    """
    folders = [settings.out / CHECKPOINTS_FOLDER]
    if len(method.runs) > 1:
        folders = [folders[0] / f"{MEMBER_PREFIX}{number}" for number in range(1, len(method.runs) + 1)]
    problem, passed_over = prepared.problem, list[str]()
    resumed: list[Checkpoint | None] = [None] * len(folders)
    if resumes:
        course = course_of(settings, problem)
        resumed = _found_by_all(folders, lambda: find_checkpoints(folders, course, note=passed_over.append))
    keep_events = max((found.position.log_events for found in resumed if found), default=0)
    first_step = sum(found.position.step for found in resumed if found)
    with _recorded(settings, first_step=first_step, keep_events=keep_events) as (log, tracker):
        here = hooks(log=log, tracker=tracker)
        log_start(log, prepared, resumed, passed_over)
        for message in passed_over:
            here.observer.note(message)
        outcomes, states = list[Outcome](), list[dict[str, Tensor]]()
        beginning = _copies(problem.adapted) if len(folders) > 1 else {}
        for number, (folder, found) in enumerate(zip(folders, resumed, strict=True)):
            if number:
                problem.adapted.load_state(beginning)
            one = replace(problem, terms=terms_of(method, settings, number=number))
            run = begin_run(one, settings, hooks=here, checkpoints=folder, resumed=found)
            outcome = train(run, clock=clock.share(len(folders) - number), interruption=interruption)
            outcomes.append(outcome)
            if settings.keep == "best" and (why := problem.judge.why_kept(outcome.history, outcome.kept)) is not None:
                here.observer.note(why)
                log.write("kept", step=outcome.kept.step, why=why)
            if len(folders) > 1:
                states.append(_copies(problem.adapted))
            if interruption.signal_number is not None:
                break
        outcome = _put_together(problem, settings, method, outcomes, states)
        outcome, dialled = dial_outcome(problem, settings, outcome, clock=clock, interruption=interruption, hooks=here)
        log_end(log, outcome, clock, folder=settings.out)
    return outcome, dialled


@contextmanager
def _recorded(
    settings: UnlearnSettings, *, first_step: int, keep_events: int
) -> Iterator[tuple[Log, Accelerator | None]]:
    """Open what is written while a run trains: its attempt, its log and its trackers, in the first process alone."""
    if not here().is_first:
        with TemporaryFile("w", encoding="utf-8") as nowhere:
            yield Log(nowhere), None
        return
    with (
        recorded_attempt(settings.out, first_step=first_step),
        open_log(settings.out / LOG_FILE, keep_events=keep_events) as log,
        trackers(settings.out, settings.trackers, settings.plain()) as tracker,
    ):
        yield log, tracker


def _found_by_all(folders: list[Path], find: Callable[[], list[Checkpoint | None]]) -> list[Checkpoint | None]:
    """Have the first process find where each run goes on, and the others read the same checkpoints.

    Raises:
        OutputError: a process cannot read what the first one found.
    """
    own = list[Checkpoint | None]()

    def steps_found() -> list[int | None]:
        own.extend(find())
        return [one.position.step if one else None for one in own]

    steps = from_first(steps_found)
    if here().is_first:
        return own
    return [None if step is None else checkpoint_of(folder, step) for folder, step in zip(folders, steps, strict=True)]


def dial_outcome(
    problem: Problem,
    settings: UnlearnSettings,
    outcome: Outcome,
    *,
    clock: Clock,
    interruption: Interruption,
    hooks: Hooks,
) -> tuple[Outcome, Dialled | None]:
    """Set the dial of a trained model, unless it has none or a signal ends the run, which sets it when it goes on."""
    if settings.dial == "none" or interruption.signal_number is not None:
        return outcome, None
    set_scale = scaling_of(problem.adapted, settings)

    def goes_on(next_s: float) -> bool:
        is_over, signal_number = highest(int(clock.is_over(next_s=next_s)), interruption.signal_number or 0)
        interruption.signal_number = signal_number or None
        return not is_over and not signal_number

    dialled = turn_dial(
        settings, engine=problem.engine, probes=problem.probes, halves=problem.halves, set_scale=set_scale,
        trained=outcome.kept, start=problem.start.score if problem.start else None, progress=hooks.observer.stage,
        goes_on=goes_on,
    )  # fmt: skip
    if interruption.signal_number is not None:
        set_scale(1.0)
        return replace(outcome, reason=f"signal {interruption.signal_number}"), None
    for note in dialled.notes():
        hooks.observer.note(note)
    log_dial(hooks.log, dialled)
    return replace(outcome, kept=dialled.kept), dialled


def begin_run(
    problem: Problem, settings: UnlearnSettings, *, hooks: Hooks, checkpoints: Path, resumed: Checkpoint | None
) -> Run[Problem]:
    """Return the run of a problem before its first step, or where the checkpoint left it."""
    course = course_of(settings, problem)
    # What a method makes of the weights in the end is scored too, and the dial at a few scales at least.
    num_scorings = 1 if get_method(settings.method).finish == "keep" else 2
    num_scorings += 0 if settings.dial == "none" else len(FIRST_SCALES) + 1
    return begin(
        problem, course, settings, hooks=hooks, checkpoints=checkpoints, resumed=resumed, num_scorings=num_scorings
    )


def find_checkpoints(
    folders: list[Path],
    course: Course,
    *,
    note: Callable[[str], None],
    upto: int | None = None,
) -> list[Checkpoint | None]:
    """Return where each run goes on, None for the beginning; what lies behind that is removed.

    A run goes on only where all before it stand as they were left: the log tells of them in order. None goes on from
    after step `upto`.
    """

    def needed_at(position: Position) -> frozenset[int]:
        return course.needed(position.history)

    found: list[Checkpoint | None] = []
    passed_over: list[str] = []
    for folder in folders:
        checkpoint = None
        if not passed_over and None not in found:
            checkpoint = newest_checkpoint(folder, note=passed_over.append, needs=needed_at, upto=upto)
        drop_checkpoints(folder, after=checkpoint.position.step if checkpoint else 0)
        found.append(checkpoint)
    for message in passed_over:
        note(message)
    return found


def _copies(adapted: Adapted) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in adapted.trained().items()}


def _put_together(
    problem: Problem,
    settings: UnlearnSettings,
    method: Method,
    outcomes: list[Outcome],
    states: list[dict[str, Tensor]],
) -> Outcome:
    """Negate or merge the trained adapters if the method says so, and score the result."""
    last = outcomes[-1]
    if method.finish == "keep":
        return last
    adapter = problem.adapted
    assert isinstance(adapter, LoraAdapter), "checked with the settings"
    coefficients = coefficients_of(method, settings)
    if method.finish == "negate":
        adapter.scale(-coefficients.number("scale"))
    elif len(states) > 1:
        adapter.merge_ties(states, density=coefficients.number("density"))
    step, tokens = sum(outcome.step for outcome in outcomes), sum(outcome.num_tokens for outcome in outcomes)
    with problem.engine.running():
        kept = problem.judge.score(step=step, epoch=last.kept.epoch)
    return Outcome(last.reason, step, kept, (*(s for o in outcomes for s in o.history), kept), tokens)
