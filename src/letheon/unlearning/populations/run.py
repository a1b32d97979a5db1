"""Runs over one frozen model, from their settings to a run folder each."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from letheon.data.forms import AUTO
from letheon.data.packing import join, probe_of
from letheon.data.probing import Known
from letheon.engine.population import populate
from letheon.errors import DivergenceError, ModelError, SettingsError
from letheon.launcher import check_alone
from letheon.model.adapters import LoraAdapter
from letheon.model.loading import load_model_of
from letheon.settings import UnlearnSettings
from letheon.signals import heed_signals
from letheon.storage.cache import default_cache_dir
from letheon.storage.files import full_disk_is_an_error
from letheon.training.stopping import Clock
from letheon.training.tracking import Observer, Silent, check_trackers
from letheon.unlearning.folder import hold_folder
from letheon.unlearning.form_record import check_same_inputs, inputs_read, recorded_form
from letheon.unlearning.planning import check_fit
from letheon.unlearning.planning.machine import machine_of
from letheon.unlearning.populations.cohorts import PreparedPopulation, cut_into_cohorts, train_cohorts
from letheon.unlearning.populations.groups import groups_of, why_alone
from letheon.unlearning.populations.loop import GivesUp
from letheon.unlearning.populations.reports import DivergedRun, NamedObserver, Report
from letheon.unlearning.populations.sizes import num_at_once
from letheon.unlearning.populations.together import is_in_population
from letheon.unlearning.prepare import adapt, lora_settings, prepare_shared
from letheon.unlearning.reading import precision_of, read, target_warnings
from letheon.unlearning.record import RunReport
from letheon.unlearning.resolve import method_of, resolve_end, resolve_settings
from letheon.unlearning.run import WHEN_FULL, unlearn


def run_population(
    settings: Sequence[UnlearnSettings],
    *,
    observer: Observer | None = None,
    observers: Sequence[Observer] | None = None,
    judge: GivesUp | None = None,
) -> list[Report]:
    """Train runs that `groups_of` puts in one group at once, and leave for each the folder that `unlearn` leaves.

    Each run's losses, gradients and adapter are those that it has alone, to the rounding of float32. As many go
    together as memory holds by their plans (see `num_at_once`), the rest after them. Where the model's architecture
    does not let several through at once, they go one after another, and `observer` is told why. It hears of all runs
    together, each of `observers` of one.

    A population that was ended goes on, with `resume`, in the same bytes: in the cohorts that it was cut into, all of a
    cohort from the last step at which all of them were saved. Runs that are done by then may be left out.

    `judge` may give up runs that are trained together; what others do then no longer waits for them. None ends none.

    Returns what came of each run, in order; one that diverges does not end the others.

    Raises:
        LetheonError: as `unlearn`, for any of the runs.
        SettingsError: the runs cannot share a model, or two have one folder.
    """
    observer = observer or Silent()
    observers = observers or [NamedObserver(observer, one.out.name) for one in settings]
    _check_group(settings)
    if len(settings) > 1 or (settings[0].resume and is_in_population(settings[0].out)):
        reports = _try_together(settings, observer, observers, judge)
        if reports is not None:
            return reports
    return [_alone(one, watcher) for one, watcher in zip(settings, observers, strict=True)]


def _alone(settings: UnlearnSettings, observer: Observer) -> RunReport | DivergedRun:
    try:
        return unlearn(settings, observer=observer)
    except DivergenceError as error:
        return DivergedRun(settings.out, str(error))


def _check_group(settings: Sequence[UnlearnSettings]) -> None:
    check_alone("a population of runs")
    folders = [one.out.resolve() for one in settings]
    twice = next((one.out for one, path in zip(settings, folders, strict=True) if folders.count(path) > 1), None)
    if twice is not None:
        raise SettingsError(f"out: expected a folder for each run of a population, got {twice} twice")
    if len(groups_of(settings)) > 1:
        reasons = [f"{one.out}: {reason}" for one in settings if (reason := why_alone(one)) is not None]
        raise SettingsError(
            "population: expected runs that share model, rows, template and adapted layers, got "
            f"{len(groups_of(settings))} groups of them{f' ({reasons[0]})' if reasons else ''}; groups_of returns the "
            f"runs that go together"
        )


def _try_together(
    settings: Sequence[UnlearnSettings], observer: Observer, observers: Sequence[Observer], judge: GivesUp | None
) -> list[Report] | None:
    """Train them together; None, saying why, where the model's architecture does not allow that."""
    clock = Clock(None)
    first, inputs = read(settings[0], method_of(settings[0]), note=observer.note)
    others = [
        resolve_end(one, resolve_settings(one), inputs.forget, inputs.retain).model_copy(
            update={"dtype": first.dtype, "instead": first.instead}
        )
        for one in settings[1:]
    ]
    resolved = [first, *others]
    for one in resolved:
        check_trackers(one.trackers)
    for one, watcher in zip(others, observers[1:], strict=True):
        target_warnings(one, note=watcher.note)
    check_fit(first, inputs, note=observer.note)
    at_once = num_at_once(resolved, inputs, machine=machine_of(first))
    with ExitStack() as stack:
        notes = [watcher.note for watcher in observers]
        resumes = [stack.enter_context(hold_folder(one, note=n)) for one, n in zip(resolved, notes, strict=True)]
        stack.enter_context(full_disk_is_an_error(first.out, advice=WHEN_FULL))
        for one, goes_on in zip(resolved, resumes, strict=True):
            if goes_on:
                check_same_inputs(one.out, inputs_read(inputs))
        resolved, known = _in_recorded_form(resolved, resumes)
        observer.stage("loading the model", 0, 0)
        loaded = load_model_of(first, tokenizer=inputs.tokenizer, note=observer.note)
        shared = adapt(loaded.model, first)
        assert isinstance(shared, LoraAdapter), "checked with the group"
        methods = [method_of(one) for one in resolved]
        cache_dir = first.cache_dir or default_cache_dir()
        common = prepare_shared(
            loaded, inputs, resolved, shared,
            methods=methods, cache_dir=cache_dir, progress=observer.stage, known=known,
        )  # fmt: skip
        for note in (precision_of(resolve_settings(settings[0])).line, *common.notes):
            observer.note(note)
        whole = PreparedPopulation(resolved, resumes, inputs, loaded, shared, common, observer, observers, judge)
        objection = _objection(whole)
        if objection is None:
            with heed_signals() as interruption:
                return train_cohorts(whole, cut_into_cohorts(whole, at_once), clock, interruption)
    observer.note(f"{objection}; the runs go one after another")
    return None


def _in_recorded_form(
    settings: list[UnlearnSettings], resumes: Sequence[bool]
) -> tuple[list[UnlearnSettings], Mapping[str, Known]]:
    """Return the settings of all runs with the form found out when any of them began, and what was known in each."""
    begun = [recorded_form(one) for one, goes_on in zip(settings, resumes, strict=True) if goes_on]
    # One that was ended before it wrote down its form knows of none.
    found = next(((one.template, known) for one, known in begun if one.template != AUTO), None)
    if found is None:
        return settings, {}
    template, known = found
    return [one.model_copy(update={"template": template}) for one in settings], known


def _objection(whole: PreparedPopulation) -> str | None:
    """Why several runs cannot go through the model at once, if so."""
    engine = whole.common.engine
    if engine.path != "packed":
        return f"{type(engine.model).__name__} needs padded sequences, so runs cannot share a pass"
    probe = probe_of(whole.inputs.sequences).to(engine.model.device)
    try:
        two = [lora_settings(one) for one in (*whole.settings, whole.settings[0])[:2]]
        population = populate(whole.shared, two, seeds=[0, 1])
        with population.running(), engine.running(), population.together([0, 1], [probe, probe], engine):
            engine.states(join([probe, probe]))
    except ModelError as error:
        return str(error)
    return None
