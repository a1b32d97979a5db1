"""From rows to a problem that the loop can train: template, sequences, adapter, engine, reference."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from letheon.data.forms import AUTO
from letheon.data.packing import pack, probe_of
from letheon.data.probing import KNOWN_RECALL, AnswerValues, Known, describe_known
from letheon.engine.engine import Engine
from letheon.engine.paths import build_engine
from letheon.engine.reference_cache import load_or_build_reference
from letheon.engine.values import ReferenceStore, token_values
from letheon.errors import ModelError, SettingsError
from letheon.model.adapted import Adapted
from letheon.model.adapters import LoraSettings, attach_lora
from letheon.model.companions import local_folder
from letheon.model.fingerprint import fingerprint
from letheon.model.loading import LoadedModel
from letheon.model.weights import train_weights
from letheon.model.widening import product_dtype
from letheon.objective.methods import Method
from letheon.objective.parts import Term, needs_of
from letheon.objective.values import Needs
from letheon.progress import Progressed
from letheon.settings import AdapterSettings, UnlearnSettings
from letheon.storage.fingerprints import hash_checkpoint
from letheon.storage.outside import note_store
from letheon.training.tracking import Observer
from letheon.unlearning.form_record import what_was_read
from letheon.unlearning.formed_rows import FormedRows, choose_form, form_rows
from letheon.unlearning.general import GeneralRows, general_rows, general_schedule, with_openings
from letheon.unlearning.inputs import Inputs
from letheon.unlearning.interim import Probes, interim_score, stored_answers
from letheon.unlearning.judging import Budgets, Start
from letheon.unlearning.probes import kept_sequences, probes_of, unscored_rows, waits_on_kl, with_kept_rows
from letheon.unlearning.problem import Problem
from letheon.unlearning.resolve import build_schedule, coefficients_of, notes_of_schedule, terms_of


@dataclass(frozen=True, slots=True)
class Prepared:
    """A problem and what was found while preparing it."""

    problem: Problem
    form: FormedRows
    fingerprint: str
    general: GeneralRows
    notes: tuple[str, ...]
    """What was found and chosen, in words."""
    precision: str | None = None
    """How the weights lie and are multiplied, and the rates that were measured, in words."""


def prepare(
    loaded: LoadedModel,
    inputs: Inputs,
    settings: UnlearnSettings,
    *,
    method: Method,
    cache_dir: Path | None,
    observer: Observer,
    known: Mapping[str, Known] | None = None,
) -> Prepared:
    """Choose the trained parts of the model and compute the values of the reference for the rows.

    The problem is that of the method's first run; the reference serves all of its runs. `known` says how well each form
    was known when a resumed run found out its own.

    Raises:
        DataError: a row does not fit the model's context under the chosen template.
        ModelError: the modules to adapt are missing, the model's logits are not finite, or the method needs what
            cannot be had of this architecture.
    """
    adapted = adapt(loaded.model, settings)
    common = prepare_shared(
        loaded, inputs, (settings,), adapted,
        methods=(method,), cache_dir=cache_dir, progress=observer.stage, known=known,
    )  # fmt: skip
    for note in common.notes:
        observer.note(note)
    return prepare_run(common, inputs, settings, adapted, method=method)


@dataclass(frozen=True, slots=True)
class SharedProblem:
    """What runs over the same frozen model and rows have in common."""

    engine: Engine
    form: FormedRows
    fingerprint: str
    read: Mapping[str, Any]
    """Fingerprints of what was read."""
    reference: ReferenceStore
    probes: Probes
    start: Start
    general: GeneralRows
    notes: tuple[str, ...]


def prepare_shared(
    loaded: LoadedModel,
    inputs: Inputs,
    settings: Sequence[UnlearnSettings],
    adapted: Adapted,
    *,
    methods: Sequence[Method],
    cache_dir: Path | None,
    progress: Progressed | None = None,
    known: Mapping[str, Known] | None = None,
) -> SharedProblem:
    """Choose template and engine, and compute what the reference says of the rows, for all of several runs.

    The runs, at least one, each with its method, ask for the same model, rows and template. The reference holds what
    any of them needs, but not KLs of two directions.

    Raises:
        DataError, ModelError: as `prepare`.
    """
    needs = needs_of(tuple(term for one, method in zip(settings, methods, strict=True) for term in _all(one, method)))
    probe = probe_of([s for s in inputs.sequences if s.num_answer_tokens]).to(adapted.model.device)
    measures_kl = any(waits_on_kl(one) for one in settings)
    engine = build_engine(
        adapted.model, probe, adapter_off=adapted.off,
        recomputes=settings[0].gradient_checkpointing, stores_lower=settings[0].store_lower,
    )  # fmt: skip
    _check_possible(engine, adapted, replace(needs, kl="forward") if measures_kl else needs, methods[0])
    if progress is not None and settings[0].template == AUTO:
        progress("finding the form of the rows", 0, 0)
    form = form_rows(loaded, engine, inputs, settings[0], methods[0], found=known or {})
    fingerprinted = fingerprint(adapted.model)
    on_path = partial(note_store, [one.out for one in settings])
    general = general_rows(
        loaded, engine, inputs, settings[0],
        model_fingerprint=fingerprinted, cache_dir=cache_dir, on_path=on_path, progress=progress,
    )  # fmt: skip
    general = with_openings(general, form.openings(len(inputs.rows), longest=inputs.max_length), settings[0])
    short = list[str]()
    reference = load_or_build_reference(
        engine, [*form.trained, *general.trained],
        num_forget_rows=len(inputs.forget), num_retain_rows=len(inputs.retain), num_general_rows=len(general.trained),
        needs=needs, model_fingerprint=fingerprinted, cache_dir=cache_dir, progress=progress,
        on_path=on_path, on_short=short.append,
    )  # fmt: skip
    probes = probes_of(inputs, form.sequences, settings[0], asked=form.asked, others=form.trained[len(inputs.rows) :])
    kept = kept_sequences(probes, inputs, settings[0]) if measures_kl else ()
    probes = with_kept_rows(probes, engine, reference, retain=kept, general=general.scored)
    # The reference pass has read the rows as they are scored, unless they are trained on in another way.
    answers = stored_answers(reference, form.trained, probes)
    start = _start(engine, probes, answers, progress=progress)
    if start.unknown and not form.known:  # the form was given: it helps to know of the others
        form = _with_other_forms(form, engine, inputs, settings[0])
    unscored = unscored_rows(inputs, form.sequences, settings[0])
    said = [unscored.describe(so="not scored")] if unscored else []
    schedules = [build_schedule(one, inputs.forget, inputs.retain) for one in settings]
    said += dict.fromkeys(note for schedule in schedules for note in notes_of_schedule(schedule))
    notes = (*adapted.notes, *engine.notes, *form.notes, *general.notes, *short, *said, *notes_of_start(start, form))
    read = what_was_read(
        form,
        inputs,
        weights_sha256=fingerprinted,
        model_sha256=hash_checkpoint(local_folder(settings[0].model)),
        general_sha256=general.sha256 if general.trained else None,
    )
    return SharedProblem(engine, form, fingerprinted, read, reference, probes, start, general, notes)


def _with_other_forms(form: FormedRows, engine: Engine, inputs: Inputs, settings: UnlearnSettings) -> FormedRows:
    """Return `form` with how well the original model knows the rows in each form."""
    with engine.running(), engine.adapter_off():
        known = choose_form(engine, inputs, date=form.date, cuts=settings.overlong != "refuse")
    return replace(form, known=known)


def prepare_run(
    common: SharedProblem, inputs: Inputs, settings: UnlearnSettings, adapted: Adapted, *, method: Method
) -> Prepared:
    """Return the problem of one of the runs that `common` was prepared for; of a method's runs, the first.

    Raises:
        ModelError: the reference does not agree with the model.
    """
    schedule = build_schedule(settings, inputs.forget, inputs.retain)
    problem = Problem(
        engine=common.engine,
        adapted=adapted,
        rows=inputs.rows,
        sequences=[*common.form.trained, *common.general.trained],
        num_forget_rows=len(inputs.forget),
        reference=common.reference,
        terms=terms_of(method, settings),
        schedule=schedule,
        probes=common.probes,
        start=common.start,
        alternatives=method.alternatives,
        general=general_schedule(
            settings,
            common.form.trained,
            common.general,
            schedule=schedule,
            num_forget=len(inputs.forget),
            num_rows=len(inputs.rows),
        ),
        control=method.control(coefficients_of(method, settings)) if method.control else None,
        read=common.read,
        budgets=Budgets.of(settings),
        halves=inputs.halves,
    )
    problem = replace(problem, forward_token_s=check_reference(problem))
    return Prepared(problem, common.form, common.fingerprint, common.general, (*inputs.notes, *common.notes))


def _all(settings: UnlearnSettings, method: Method) -> list[Term]:
    """The terms of all runs that the method consists of."""
    return [term for number in range(len(method.runs)) for term in terms_of(method, settings, number=number)]


def adapt(model: PreTrainedModel, settings: UnlearnSettings) -> Adapted:
    """Choose the trained parts of a model.

    Raises:
        ModelError: the modules to adapt are missing.
        SettingsError: `layers` names no layer.
    """
    modules = settings.target_modules or ()
    if settings.adapt == "weights":
        return train_weights(model, modules=modules, layers=settings.layers)
    return attach_lora(model, lora_settings(settings), seed=settings.seed)


def lora_settings(settings: AdapterSettings) -> LoraSettings:
    """Return what the adapter of a run is made from."""
    return LoraSettings(
        rank=settings.rank,
        alpha=settings.alpha,
        targets=settings.target_modules or (),
        layers=settings.layers,
        rank_stabilised=settings.rslora,
        decomposed=settings.dora,
        dropout=settings.lora_dropout,
        init=settings.lora_init,
    )


def _check_possible(engine: Engine, adapted: Adapted, needs: Needs, method: Method) -> None:
    if needs.activations is not None and needs.activations < engine.begins_at:
        raise SettingsError(
            f"store_lower: method '{method.name}' uses layer {needs.activations}, below the lowest trained one "
            f"({engine.begins_at}); leave out --store-lower"
        )
    if engine.path != "logits":
        return
    if needs.activations is not None:
        raise ModelError(
            f"method '{method.name}' needs hidden states, which are not available from {type(engine.model).__name__}: "
            f"it runs by its own forward; choose another method"
        )
    if not adapted.is_switchable and (needs.kl is not None or needs.reference_logits or needs.general_kl):
        raise ModelError(
            f"method '{method.name}' needs the reference's distributions, which {type(engine.model).__name__} has "
            f"only while an adapter is off; use --adapt lora"
        )


def _start(engine: Engine, probes: Probes, answers: AnswerValues | None, *, progress: Progressed | None) -> Start:
    with engine.running(), engine.adapter_off():
        return Start(interim_score(engine, probes, step=0, epoch=0.0, answers=answers, progress=progress))


def notes_of_start(start: Start, form: FormedRows) -> list[str]:
    """Say how well the model knows the rows before the first step, and loudly if it does not."""
    recalls = ", ".join(f"{side} {start.score.values[f'{side}_recall']:.3f}" for side in ("forget", "retain"))
    notes = [f"before the first step: recall {recalls}"]
    if start.unknown:
        best, known = next(iter(form.known.items()))
        is_elsewhere = best != form.template and known.recall >= KNOWN_RECALL
        which = "in this form" if is_elsewhere else "in any form that was tried"
        advice = (
            f"it knows them as --template {best}"
            if is_elsewhere
            else "give the rows as the model was trained on them, or set their form by --template"
        )
        notes.append(
            f"WARNING: the model does not know these rows {which}: recall of the {' and '.join(start.unknown)} rows is "
            f"below {KNOWN_RECALL:g} in form '{form.template}' ({describe_known(form.known)}). What this run reports "
            f"about them is not forgetting; {advice}"
        )
        if form.is_dated:
            notes.append(
                f"the chat template writes the date, and this run used {form.date}; the model may have been trained "
                "with another one: set it by --date"
            )
    return notes


def check_reference(problem: Problem, *, tolerance: float = 1e-3) -> float:
    """Check on a few rows that at the start policy and reference are one: ratio and KL are zero.

    Returns how long a token took in that forward, seconds.

    Raises:
        ModelError: they are not, so the stored reference is not this model's.
    """
    engine = problem.engine
    last = len(problem.rows) - 1
    indices = sorted({0, problem.num_forget_rows - 1, problem.num_forget_rows, last})
    batch = pack(
        [problem.sequences[i] for i in indices],
        is_forget=[i < problem.num_forget_rows for i in indices],
        row_index=indices,
    ).to(engine.model.device)
    began = time.monotonic()
    with torch.no_grad(), engine.running(), engine.adapter_off():
        values = token_values(engine, problem.reference, batch, needs=needs_of(problem.terms))
    ratio = _largest(values.log_probs - values.reference_log_probs)
    token_s = (time.monotonic() - began) / batch.num_tokens  # a GPU has done the forward only when a value is read
    divergence = 0.0 if values.kl is None else _largest(values.kl)
    # Other batch shapes may round differently where a matrix product is not in float32.
    allowed = tolerance if product_dtype(engine.model) == torch.float32 else 0.25
    if not (ratio <= allowed and divergence <= allowed):
        raise ModelError(
            f"the stored reference does not agree with the model (log-ratio {ratio:.3g}, KL {divergence:.3g} nats, "
            f"at most {allowed:g} expected); remove the cached store (--cache-dir) and run again"
        )
    return token_s


def _largest(values: torch.Tensor) -> float:
    """The largest absolute value; 0 of none (rows cut off before their answers)."""
    return float(values.abs().max()) if values.numel() else 0.0
