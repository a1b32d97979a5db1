"""One unlearning run, from settings to a run folder."""

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from letheon.data.forms import check_form
from letheon.errors import SettingsError
from letheon.model.adapted import Adapted
from letheon.model.adapters import LoraAdapter
from letheon.model.checkpoint_files import check_checkpoint
from letheon.model.layers import layers_in
from letheon.model.loading import LoadedModel, check_device, check_vocabulary, load_config, load_model, stored_dtype
from letheon.model.precision import Choice, choose_precision
from letheon.model.quantised import check_not_quantised
from letheon.objective.catalogue import get_method
from letheon.objective.methods import Method
from letheon.settings import UnlearnSettings
from letheon.signals import Interruption, finishing, heed_signals
from letheon.storage.cache import default_cache_dir
from letheon.storage.files import check_output_folder, full_disk_is_an_error
from letheon.storage.run_folder import CHECKPOINTS_FOLDER, LOG_FILE, MEMBER_PREFIX
from letheon.training.checkpoint import Checkpoint, Position, drop_checkpoints, newest_checkpoint
from letheon.training.judge import StateScore
from letheon.training.loop import begin, train
from letheon.training.state import Hooks, Outcome, Run
from letheon.training.stopping import Clock, choose_kept, writing_s
from letheon.training.tracking import Observer, Silent, check_trackers, open_log, trackers
from letheon.unlearning.attempts import recorded_attempt
from letheon.unlearning.course import SetCourse
from letheon.unlearning.folder import check_disk, hold_folder, num_bytes_at_end, recorded_dtype
from letheon.unlearning.form_record import check_same_inputs, inputs_read, recorded_form
from letheon.unlearning.formed_rows import check_answers
from letheon.unlearning.inputs import Inputs, read_inputs
from letheon.unlearning.judging import UnlearningJudge
from letheon.unlearning.planning import Planned, check_fit, check_targets, plan_with_rates
from letheon.unlearning.prepare import Prepared, prepare
from letheon.unlearning.problem import Problem
from letheon.unlearning.record import RunReport, leave, log_end, log_start, write_run
from letheon.unlearning.resolve import build_schedule, check_score_at, coefficients_of, resolve_settings, terms_of

__all__ = [
    "WHEN_FULL",
    "RunReport",
    "check",
    "check_alone",
    "default_cache_dir",
    "find_checkpoints",
    "plan",
    "read",
    "target_warnings",
    "unlearn",
]

WHEN_FULL = "the checkpoints so far are intact: free space and continue with --resume"
"""What to do about a full disk."""


def unlearn(
    settings: UnlearnSettings,
    *,
    observer: Observer | None = None,
    on_best: Callable[[LoadedModel, dict[str, Any]], None] | None = None,
) -> RunReport:
    """Unlearn and leave `settings.out`: model/, adapter/, run.yaml, provenance.json, log.jsonl, checkpoints/.

    `on_best` receives the model and its merged weights whenever a state scores best so far.

    Raises:
        LetheonError: whatever in settings, rows, checkpoint or disk stands in the way; what can be checked is checked
            before the model is loaded.
    """
    clock = Clock(settings.time_limit_s)
    observer = observer or Silent()
    check_alone()
    method = get_method(settings.method)
    asked = settings
    settings, inputs = read(settings, method, note=observer.note)
    check_fit(settings, inputs, note=observer.note)
    with (
        hold_folder(settings, note=observer.note) as resumes,
        full_disk_is_an_error(settings.out, advice=WHEN_FULL),
    ):
        said = precision_of(resolve_settings(asked)).line
        return _unlearn(settings, inputs, method, resumes, said, clock=clock, observer=observer, on_best=on_best)


def _unlearn(
    settings: UnlearnSettings,
    inputs: Inputs,
    method: Method,
    resumes: bool,
    precision: str,
    *,
    clock: Clock,
    observer: Observer,
    on_best: Callable[[LoadedModel, dict[str, Any]], None] | None,
) -> RunReport:
    """Load the model, train it and write what comes of it into the run folder, which is ours.

    `precision` says how its weights lie and are multiplied.
    """
    settings, known = recorded_form(settings) if resumes else (settings, {})
    if resumes:
        form = {"template": settings.template, "date": settings.date}
        check_same_inputs(settings.out, {**form, **inputs_read(inputs)})  # before the model is loaded; the rest with it
    observer.stage("loading the model", 0, 0)
    loaded = load_model(
        settings.model,
        dtype=settings.dtype,
        tokenizer=inputs.tokenizer,
        device=settings.device,
        trust_remote_code=settings.trust_remote_code,
        note=observer.note,
    )
    cache_dir = settings.cache_dir or default_cache_dir()
    prepared = prepare(loaded, inputs, settings, method=method, cache_dir=cache_dir, observer=observer, known=known)
    prepared = replace(prepared, precision=precision)
    observer.note(precision)  # not into the log, which is the same in every run: rates are not
    check_disk(settings, prepared.problem.adapted, num_runs=len(method.members))
    write_run(settings, prepared)
    if settings.time_limit_s is not None:
        clock.closing_s = writing_s(settings.out, num_bytes_at_end(prepared.problem.adapted))

    def publish(_: StateScore) -> None:
        # A state of a run that is not over means nothing yet where the method changes it in the end.
        if on_best is not None and method.finish == "keep":
            on_best(loaded, prepared.problem.adapted.merged_state())

    with heed_signals() as interruption:
        hooks = partial(Hooks, observer=observer, on_best=publish)
        outcome = _train_all(prepared, settings, method, resumes, clock=clock, interruption=interruption, hooks=hooks)
    observer.stage("writing the model", 0, 0)
    exit_code = interruption.exit_code if interruption.signal_number else 0
    with finishing():
        return leave(settings, loaded, prepared, inputs, outcome, clock=clock, exit_code=exit_code)


def plan(settings: UnlearnSettings, *, note: Callable[[str], None] | None = None) -> Planned:
    """Return what a run would need, without loading weights or writing anything; `note` hears of the rows.

    Raises:
        LetheonError: whatever in settings, rows or checkpoint stands in the way of the run.
    """
    settings, inputs = read(settings, get_method(settings.method), note=note)
    return plan_with_rates(settings, inputs)


def check(settings: UnlearnSettings) -> None:
    """Check of a run all that can be checked without loading weights or writing anything.

    Raises:
        LetheonError: whatever in settings, rows or checkpoint stands in the way of the run.
    """
    settings, inputs = read(settings, get_method(settings.method))
    check_fit(settings, inputs, note=lambda _: None)


def read(
    settings: UnlearnSettings, method: Method, *, note: Callable[[str], None] | None = None
) -> tuple[UnlearnSettings, Inputs]:
    """Return the settings in full, and the rows, all checked that can be checked without the weights.

    Raises:
        LetheonError: whatever in settings, rows or checkpoint stands in the way of the run.
    """
    settings = resolve_settings(settings)
    check_form(settings.template)
    check_trackers(settings.trackers)
    check_device(settings.device)
    _check_cache(settings.cache_dir)
    check_checkpoint(settings.model)
    config = load_config(settings.model, trust_remote_code=settings.trust_remote_code)
    check_not_quantised(config, source=settings.model)
    settings = settings.model_copy(update={"dtype": precision_of(settings).precision})
    settings = _choose_layer(settings, method)
    warnings = target_warnings(settings, note=note)
    inputs = replace(read_inputs(settings, note=note), warnings=warnings)
    check_vocabulary(config, inputs.tokenizer, source=settings.model)
    check_answers(inputs, settings)
    check_score_at(settings, build_schedule(settings, inputs.forget, inputs.retain))
    return settings, inputs


def target_warnings(settings: UnlearnSettings, *, note: Callable[[str], None] | None = None) -> tuple[str, ...]:
    """Check what a run would train in its model, and return what it warns of, which `note` hears too.

    Raises:
        LetheonError: as `check_targets`.
    """
    found = list[str]()

    def hear(message: str) -> None:
        found.append(message)
        if note is not None:
            note(message)

    check_targets(settings, note=hear)
    return tuple(found)


def precision_of(settings: UnlearnSettings) -> Choice:
    """Return the precision of a run, by what the checkpoint holds and this machine multiplies; one goes on in its own.

    Raises:
        ModelError: the checkpoint cannot be read.
    """
    stored = stored_dtype(settings.model, load_config(settings.model, trust_remote_code=settings.trust_remote_code))
    was = recorded_dtype(settings.out) if settings.resume else None
    return choose_precision(stored, asked=settings.dtype, device=settings.device, was=was)


def _choose_layer(settings: UnlearnSettings, method: Method) -> UnlearnSettings:
    """Settle which decoder layer a method looks at, and train it and the two below it unless told otherwise.

    RMU's authors take layer 7 of 32 (arXiv 2403.03218); the same share of the depth is taken here, not below layer 2.

    Raises:
        SettingsError: a layer is not one of the model's.
    """
    if method.layer is None and settings.layers is None:
        return settings
    config = load_config(settings.model, trust_remote_code=settings.trust_remote_code).get_text_config()
    num_layers = int(config.num_hidden_layers)
    if settings.layers is not None:
        layers_in(settings.layers, num_layers)  # a span that names none is said before weights are loaded
    if method.layer is None:
        return settings
    given = (settings.coefficients or {})[method.layer]
    layer = min(max(round(num_layers * 7 / 32), 2), num_layers - 1) if given == "auto" else int(float(given))
    if layer >= num_layers or (given != "auto" and layer != float(given)):
        raise SettingsError(f"{method.layer}: expected a layer of the model, 0 to {num_layers - 1}, got {given}")
    coefficients = {**(settings.coefficients or {}), method.layer: float(layer)}
    layers = settings.layers or f"{max(layer - 2, 0)}:{layer + 1}"
    return settings.model_copy(update={"coefficients": coefficients, "layers": layers})


def _check_cache(folder: Path | None) -> None:
    if folder is None:
        return
    check_output_folder(folder, what="a folder for reference stores", advice="choose another --cache-dir")


def check_alone() -> None:
    """Refuse to be one of several processes.

    Raises:
        SettingsError: a launcher started more than one.
    """
    num_processes = os.environ.get("WORLD_SIZE", "1")
    if num_processes != "1":
        raise SettingsError(
            f"unlearn runs in one process, but the launcher started {num_processes} (WORLD_SIZE); start it without a "
            f"launcher"
        )


def _train_all(
    prepared: Prepared,
    settings: UnlearnSettings,
    method: Method,
    resumes: bool,
    *,
    clock: Clock,
    interruption: Interruption,
    hooks: Callable[..., Hooks],
) -> Outcome:
    """Train each of the runs that the method consists of, and put together what comes of them."""
    folders = [settings.out / CHECKPOINTS_FOLDER]
    if len(method.members) > 1:
        folders = [folders[0] / f"{MEMBER_PREFIX}{number}" for number in range(1, len(method.members) + 1)]
    problem, passed_over = prepared.problem, list[str]()
    resumed: list[Checkpoint | None] = [None] * len(folders)
    if resumes:
        resumed = find_checkpoints(folders, problem.judge, settings, note=passed_over.append)
    keep_events = max((found.position.log_events for found in resumed if found), default=0)
    with (
        recorded_attempt(settings.out, first_step=sum(found.position.step for found in resumed if found)),
        open_log(settings.out / LOG_FILE, keep_events=keep_events) as log,
        trackers(settings.out, settings.trackers, settings.plain()) as tracker,
    ):
        here = hooks(log=log, tracker=tracker)
        log_start(log, prepared, resumed, passed_over)
        for message in passed_over:
            here.observer.note(message)
        outcomes, states = list[Outcome](), list[dict[str, Tensor]]()
        beginning = _copies(problem.adapted) if len(folders) > 1 else {}
        for number, (folder, found) in enumerate(zip(folders, resumed, strict=True)):
            if number:
                problem.adapted.load_state(beginning)
            one = replace(problem, terms=terms_of(method, settings, member=number))
            run = begin_run(one, settings, hooks=here, checkpoints=folder, resumed=found)
            outcome = train(run, clock=clock.share(len(folders) - number), interruption=interruption)
            outcomes.append(outcome)
            if len(folders) > 1:
                states.append(_copies(problem.adapted))
            if interruption.signal_number is not None:
                break
        outcome = _put_together(problem, settings, method, outcomes, states)
        log_end(log, outcome, clock, folder=settings.out)
    return outcome


def begin_run(
    problem: Problem, settings: UnlearnSettings, *, hooks: Hooks, checkpoints: Path, resumed: Checkpoint | None
) -> Run[Problem]:
    """Return the run of a problem before its first step, or where the checkpoint left it."""
    course = SetCourse(settings, problem.schedule, problem.judge)
    # What a method makes of the weights in the end is scored too.
    num_scorings = 1 if get_method(settings.method).finish == "keep" else 2
    return begin(
        problem, course, settings, hooks=hooks, checkpoints=checkpoints, resumed=resumed, num_scorings=num_scorings
    )


def find_checkpoints(
    folders: list[Path],
    judge: UnlearningJudge,
    settings: UnlearnSettings,
    *,
    note: Callable[[str], None],
    upto: int | None = None,
) -> list[Checkpoint | None]:
    """Return where each run goes on, None for the beginning; what lies behind that is removed.

    A run goes on only where all before it stand as they were left: the log tells of them in order. None goes on from
    after step `upto`.
    """

    def kept_at(position: Position) -> set[int]:
        return {choose_kept(position.history, judge, keep=settings.keep).step} if position.history else set()

    found: list[Checkpoint | None] = []
    passed_over: list[str] = []
    for folder in folders:
        checkpoint = None
        if not passed_over and None not in found:
            checkpoint = newest_checkpoint(folder, note=passed_over.append, needs=kept_at, upto=upto)
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
    """Negate or merge what was trained where the method says so, and score the result."""
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
