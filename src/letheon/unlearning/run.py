"""One unlearning run, from settings to a run folder."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from letheon.launcher import check_alone
from letheon.model.adapted import Adapted
from letheon.model.loading import LoadedModel, load_model_of
from letheon.objective.catalogue import get_method
from letheon.objective.methods import Method
from letheon.processes import from_first, here, in_turn, on_first
from letheon.settings import UnlearnSettings
from letheon.signals import finishing, heed_signals
from letheon.storage.cache import default_cache_dir
from letheon.storage.files import full_disk_is_an_error
from letheon.training.judge import StateScore
from letheon.training.state import Hooks
from letheon.training.stopping import Clock, writing_s
from letheon.training.tracking import Observer, Silent
from letheon.unlearning.fluent import answer_notes
from letheon.unlearning.folder import check_disk, hold_folder, num_bytes_at_end
from letheon.unlearning.form_record import check_same_inputs, inputs_read, recorded_form
from letheon.unlearning.inputs import Inputs
from letheon.unlearning.method_runs import train_all
from letheon.unlearning.planning import check_fit
from letheon.unlearning.prepare import Prepared, prepare
from letheon.unlearning.reading import precision_of, read
from letheon.unlearning.record import RunReport, write_result, write_run
from letheon.unlearning.resolve import method_of, resolve_settings

WHEN_FULL = "the checkpoints so far are intact: free space and continue with --resume"
"""What to do about a full disk."""


@dataclass(frozen=True, slots=True)
class Written:
    """A run whose folder is complete, while its model is still in memory."""

    report: RunReport
    loaded: LoadedModel
    adapted: Adapted
    weights_sha256: str
    """Of the model before the first step."""
    precision: str
    """How its weights lie and are multiplied, in words."""
    is_time_up: bool
    """Whether the time limit ended the run, or has passed since."""


def unlearn(
    settings: UnlearnSettings,
    *,
    observer: Observer | None = None,
    on_best: Callable[[LoadedModel, dict[str, Any]], None] | None = None,
    on_checked: Callable[[], None] | None = None,
    on_written: Callable[[Written], None] | None = None,
) -> RunReport:
    """Unlearn and leave `settings.out`: model/, adapter/, run.yaml, provenance.json, log.jsonl, checkpoints/.

    `on_best` receives the model and its merged weights whenever a state scores best so far. `on_checked` is called
    before the model is loaded, `on_written` when all is written, while the folder is still held.

    Raises:
        LetheonError: whatever in settings, rows, checkpoint or disk stands in the way; what can be checked is checked
            before the model is loaded.
    """
    clock = Clock(settings.time_limit_s)
    observer = observer or Silent()
    if here().size == 1:
        check_alone("a run that was not begun by letheon.unlearn")
    asked, note = settings, observer.note

    def checked() -> tuple[UnlearnSettings, Inputs]:
        settings, inputs = read(asked, get_method(asked.method), note=note)
        check_fit(settings, inputs, note=note)
        if on_checked is not None:
            on_checked()
        return settings, inputs

    settings, inputs = in_turn(checked)
    method = method_of(settings)
    with (
        _held(settings, note=note) as resumes,
        full_disk_is_an_error(settings.out, advice=WHEN_FULL),
    ):
        said = precision_of(resolve_settings(asked)).line
        written = _unlearn(settings, inputs, method, resumes, said, clock=clock, observer=observer, on_best=on_best)
        if on_written is not None:
            on_written(written)
        return written.report


@contextmanager
def _held(settings: UnlearnSettings, *, note: Callable[[str], None]) -> Iterator[bool]:
    """Hold the run folder, in the first of several processes, while the block lasts (see `hold_folder`)."""
    with ExitStack() as stack:
        yield from_first(lambda: stack.enter_context(hold_folder(settings, note=note)))


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
) -> Written:
    """Load the model, train it and write the result to the run folder, which this process has locked.

    `precision` says how its weights lie and are multiplied.
    """
    settings, loaded, prepared = _load_and_prepare(settings, inputs, method, resumes, precision, observer=observer)
    on_first(lambda: check_disk(settings, prepared.problem.adapted, num_runs=len(method.runs)))
    on_first(lambda: write_run(settings, prepared))
    if settings.time_limit_s is not None and here().is_first:
        clock.closing_s = writing_s(settings.out, num_bytes_at_end(prepared.problem.adapted))

    def publish(_: StateScore) -> None:
        # A state of a run that is not over means nothing yet where the method changes it in the end.
        if on_best is not None and method.finish == "keep":
            on_best(loaded, dict(prepared.problem.adapted.merged_state()))

    with heed_signals() as interruption:
        hooks = partial(Hooks, observer=observer, on_best=publish)
        outcome, dialled = train_all(
            prepared, settings, method, resumes, clock=clock, interruption=interruption, hooks=hooks
        )
    observer.stage("writing the model", 0, 0)
    exit_code = interruption.exit_code if interruption.signal_number else 0
    with finishing():
        report = from_first(
            lambda: write_result(
                settings, loaded, prepared, inputs, outcome, clock=clock, exit_code=exit_code, dialled=dialled
            )
        )
    if report.merging is not None:
        observer.note(report.merging.sentence)
    for note in answer_notes(report.fluency, settings):
        observer.note(note)
    is_time_up = from_first(
        lambda: clock.limit_s is not None and (clock.elapsed_s > clock.limit_s or "time limit" in outcome.reason)
    )
    return Written(report, loaded, prepared.problem.adapted, prepared.fingerprint, precision, is_time_up)


def _load_and_prepare(
    settings: UnlearnSettings,
    inputs: Inputs,
    method: Method,
    resumes: bool,
    precision: str,
    *,
    observer: Observer,
) -> tuple[UnlearnSettings, LoadedModel, Prepared]:
    """Load the model and prepare its problem; the settings come with the form that a resumed run found out."""
    settings, known = recorded_form(settings) if resumes else (settings, {})
    if resumes:
        form = {"template": settings.template, "date": settings.date}
        check_same_inputs(settings.out, {**form, **inputs_read(inputs)})  # before the model is loaded; the rest with it
    observer.stage("loading the model", 0, 0)
    loaded = load_model_of(settings, tokenizer=inputs.tokenizer, shard=settings.shard, note=observer.note)
    cache_dir = settings.cache_dir or default_cache_dir()
    prepared = prepare(loaded, inputs, settings, method=method, cache_dir=cache_dir, observer=observer, known=known)
    prepared = replace(prepared, precision=precision)
    observer.note(precision)  # not into the log, which is the same in every run: rates are not
    return settings, loaded, prepared
