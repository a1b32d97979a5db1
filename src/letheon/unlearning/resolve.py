"""From the user's settings to all settings of a run: the method's published values fill the gaps."""

from collections.abc import Collection
from dataclasses import replace
from typing import Any, Literal

from letheon.data.forms import AUTO
from letheon.data.general import HOLDOUT
from letheon.data.rows import Rows
from letheon.data.schedules import MixedSchedule, PairedSchedule, Schedule, annealed, chunked
from letheon.data.system_message import suite_form
from letheon.errors import SettingsError
from letheon.model.loading import load_tokenizer
from letheon.model.targets import ALL_LINEAR
from letheon.objective.catalogue import get_method
from letheon.objective.methods import Alternatives, Coefficients, Method, Value, resolve
from letheon.objective.parts import Term, general_terms, instead_terms
from letheon.settings import (
    COEFFICIENT_FLAGS,
    OF_SCORING,
    CourseSettings,
    MethodSettings,
    UnlearnSettings,
)
from letheon.settings.facts import Requires, facts_of
from letheon.settings.suites import files_of
from letheon.unlearning.scoring_steps import SCORING_EPOCHS

FIXED_RATE = 1e-4
"""The learning rate of runs that cannot find their own: that of arXiv 2503.13690."""
DEFAULT_TARGETS = (ALL_LINEAR,)
"""What an adapter is attached to by default. The paper's q_proj and v_proj alone forget too slowly on small models."""
LEAST_EPOCHS, LEAST_STEPS = 60, 400
"""How long a run may take to find its own end, where no number of epochs is given: both, whichever is longer."""
MOST_RETAIN = 3
"""How many retain rows an epoch has to each forget row, where a run finds its own learning rate."""
REFUSAL = "refusal"
INSTEAD_PER_ROW = 5
"""How many other answers a forget row has, where there are several; epochs take turns."""


def resolve_settings(settings: UnlearnSettings) -> UnlearnSettings:
    """Fill in missing settings from the method's published values, and check that no given setting is ignored.

    Raises:
        SettingsError: there is no such method, it does not take a coefficient, or a setting would have no effect.
    """
    method, asked = get_method(settings.method), settings.model_fields_set
    settings = UnlearnSettings.of(
        {
            **_published(method, settings),
            **_dialled(settings),
            **_of_suite(settings),
            **settings.model_dump(exclude_unset=True),
        }
    )
    settings = UnlearnSettings.of({**_guided(settings, method), **settings.model_dump(exclude_unset=True)})
    _check_taken(settings)
    _check_rate(settings, method)
    _check_dial(settings)
    _check_scoring(settings, most=most_epochs(settings, method, asked))
    coefficients = resolve(method, given_coefficients(settings))
    flags: dict[str, object] = {name: coefficients.values.get(name) for name in COEFFICIENT_FLAGS}
    others = {name: value for name, value in coefficients.values.items() if name not in COEFFICIENT_FLAGS}
    modules = settings.target_modules
    if modules is None:
        modules = DEFAULT_TARGETS if settings.adapt == "lora" else ()
    rate = settings.learning_rate
    if rate == "auto" and not finds_rate(settings, method):
        rate = FIXED_RATE
    every = settings.checkpoint_epochs or (1 if rate == "auto" else SCORING_EPOCHS)
    resolved = {
        "coefficients": others or None,
        "target_modules": modules,
        "learning_rate": rate,
        "checkpoint_epochs": every,
    }
    # A limit that was not asked for stays so: whoever resolves these settings again, as a study does, finds no other.
    filled = settings.model_dump(exclude={"epochs"} if rate == "auto" and "epochs" not in asked else None)
    settings = UnlearnSettings.of({**filled, **flags, **resolved})
    method_of(settings)
    _check_general(settings, method)
    _check_method(settings, method)
    return settings


def finds_rate(settings: UnlearnSettings, method: Method) -> bool:
    """Return whether scores can tell how fast rows are being forgotten.

    They cannot where a method takes the rows chunk by chunk, or forgets by what it does after training.
    """
    return method.finish == "keep" and settings.schedule not in ("chunked", "annealed")


def most_epochs(settings: UnlearnSettings, method: Method, asked: Collection[str]) -> int:
    """Return after how many epochs a run is over; `asked` are the names of the settings that were given.

    One that was asked for no number of them and finds its own end may take longer where its epochs are short.
    """
    finds_end = settings.learning_rate == "auto" and finds_rate(settings, method) and "epochs" not in asked
    return LEAST_EPOCHS if finds_end else settings.epochs


def method_of(settings: UnlearnSettings) -> Method:
    """Return the method of a run, which trains on other answers where `instead` asks for some.

    Raises:
        SettingsError: there is no such method, or it trains on other answers of its own.
    """
    method = get_method(settings.method)
    if settings.instead is None:
        return method
    if method.alternatives is not None:
        raise SettingsError(
            f"instead: method '{method.name}' trains on other answers to the forget rows already; leave it out, or "
            f"give yours by --alternatives FILE"
        )
    if settings.instead == REFUSAL:
        return replace(method, alternatives=Alternatives("refusal", replace=False))
    kind: Literal["generated", "given"] = "generated" if settings.instead == AUTO else "given"
    return replace(method, alternatives=Alternatives(kind, replace=False, per_row=INSTEAD_PER_ROW))


def _published(method: Method, settings: UnlearnSettings) -> dict[str, object]:
    """Return the settings that the method declares, but no names of modules for another way to adapt than its own."""
    declared = dict(method.settings)
    if "adapt" in settings.model_fields_set and settings.adapt != declared.get("adapt", "lora"):
        declared.pop("target_modules", None)
    return declared


def _dialled(settings: UnlearnSettings) -> dict[str, object]:
    """Return the dial of a run for which none is named: on where there are documents to choose its scale by."""
    return {"dial": "membership"} if settings.holdout is not None and not settings.dora else {}


def _guided(settings: UnlearnSettings, method: Method) -> dict[str, object]:
    """Return what a run that is its own guide learns beside its rows, where nothing else is named.

    What the model writes is its general text, and a refusal the other answer to its forget rows. A fixed learning rate
    belongs to published settings or to a user's own; the loss then has the method's terms alone.
    """
    if settings.learning_rate != "auto" or not finds_rate(settings, method):
        return {}
    return {"general": AUTO, **({"instead": REFUSAL} if method.alternatives is None else {})}


def _of_suite(settings: UnlearnSettings) -> dict[str, object]:
    """Return the form of a suite's own rows, where none is named: that in which it asks questions, or bare text."""
    files = files_of(settings.suite)
    if files is None or not files.splits or "template" in settings.model_fields_set:
        return {}
    if not files.are_questions:
        return {"template": "joined"}
    source = settings.tokenizer or settings.model
    return {"template": suite_form(load_tokenizer(source, trust_remote_code=settings.trust_remote_code))}


def effective(settings: UnlearnSettings) -> dict[str, Any]:
    """Return the settings of the run itself as YAML and JSON can hold them, without those that have no effect."""
    of_run = ((name, value) for name, value in settings.plain().items() if name not in OF_SCORING)
    return {name: value for name, value in of_run if _has_effect(settings, name)}


def given_coefficients(settings: MethodSettings) -> dict[str, Value]:
    """Return the coefficients that settings hold, by name.

    Raises:
        SettingsError: one is given twice, with two values.
    """
    flags = {name: value for name in COEFFICIENT_FLAGS if (value := getattr(settings, name)) is not None}
    others = settings.coefficients or {}
    for name in flags.keys() & others.keys():
        if flags[name] != others[name]:
            raise SettingsError(
                f"{name}: expected one value, got {flags[name]!r} from the flag and {others[name]!r} "
                "from the coefficients; give one of them"
            )
    return {**flags, **others}


def terms_of(
    method: Method, settings: UnlearnSettings, *, number: int = 0, layer: int | None = None
) -> tuple[Term, ...]:
    """Return the terms of one of the method's runs, and those on other answers and general text, if there are any.

    `layer` is what the method's coefficient for a layer means in the model.

    Raises:
        SettingsError: every term has weight 0.
    """
    terms = method.terms(coefficients_of(method, settings, number=number, layer=layer))
    if not terms:
        raise SettingsError(
            f"method '{method.name}': every term has weight 0, so there is nothing to minimise; set a weight above 0"
        )
    instead = instead_terms(settings.instead_weight) if settings.instead is not None else ()
    general = general_terms(settings.general_weight) if settings.general is not None else ()
    return (*terms, *instead, *general)


def coefficients_of(
    method: Method, settings: UnlearnSettings, *, number: int = 0, layer: int | None = None
) -> Coefficients:
    """Return the coefficients of one of the method's runs."""
    given = {**given_coefficients(settings), **method.runs[number]}
    if method.layer is not None and layer is not None:
        given[method.layer] = layer
    return Coefficients(given, settings.seed)


def build_schedule(settings: UnlearnSettings, forget: Rows, retain: Rows) -> Schedule:
    """Return what draws the steps of a run over these rows.

    A run that finds its own learning rate draws forget rows more often where there are few of them: it follows how fast
    they are forgotten, and steps of retain rows alone would make the learning rate rise until these are damaged.
    """
    num_forget, num_retain = len(forget), len(retain)
    seed, epochs, batch_size = settings.seed, settings.epochs, settings.batch_size
    if settings.schedule == "mixed":
        repeats = max(1, round(num_retain / num_forget / MOST_RETAIN)) if settings.learning_rate == "auto" else 1
        repeated = num_forget if repeats > 1 else 0
        return MixedSchedule(num_forget + num_retain, batch_size, seed, epochs, repeated, repeats)
    if settings.schedule == "forget":
        return MixedSchedule(num_forget, batch_size, seed, epochs)
    if settings.schedule == "chunked":
        return chunked(
            num_forget,
            num_retain,
            chunk_size=settings.chunk_size,
            retain_ratio=settings.retain_ratio,
            batch_size=batch_size,
            epochs=epochs,
            seed=seed,
        )
    if settings.schedule == "annealed":
        return annealed(
            num_forget,
            num_retain,
            chunk_size=settings.chunk_size,
            retain_share=settings.retain_share,
            batch_size=batch_size,
            epochs=epochs,
            seed=seed,
        )
    return PairedSchedule(
        num_forget,
        num_retain,
        batch_size,
        settings.retain_batch_size or batch_size,
        seed,
        epochs,
        alternate=settings.schedule == "alternating",
    )


def notes_of_schedule(schedule: Schedule) -> list[str]:
    """Say that an epoch has each forget row several times, where it does."""
    if not isinstance(schedule, MixedSchedule) or schedule.repeats == 1:
        return []
    return [
        f"each forget row comes {schedule.repeats} times an epoch, because there are many more retain rows; with a "
        "--learning-rate of one's own it comes once"
    ]


def resolve_end(asked: UnlearnSettings, settings: UnlearnSettings, forget: Rows, retain: Rows) -> UnlearnSettings:
    """Return resolved settings, with epochs enough for a run to find its own end where it was not `asked` for a number.

    A largest number of steps ends it by itself.
    """
    if settings.learning_rate != "auto" or "epochs" in asked.model_fields_set:
        return settings
    steps_per_epoch = build_schedule(settings, forget, retain).steps_per_epoch
    most_steps = max(LEAST_STEPS, settings.max_steps or 0)
    return settings.model_copy(update={"epochs": max(LEAST_EPOCHS, -(-most_steps // steps_per_epoch))})


def most_checkpoints(settings: UnlearnSettings) -> int:
    """Return how many checkpoints lie on disk at once: the newest few, the one to keep and one being written.

    Beside them stay those that `score_at` asks for, and the one that a run that finds its own learning rate goes back
    to where it ruins its retain rows.
    """
    return settings.keep_checkpoints + 2 + (settings.learning_rate == "auto") + len(settings.score_at or ())


def _check_taken(settings: UnlearnSettings) -> None:
    for name in sorted(settings.model_fields_set):
        is_default = getattr(settings, name) == UnlearnSettings.model_fields[name].default
        if not is_default and not _has_effect(settings, name):
            wants = facts_of(UnlearnSettings)[name].requires
            raise SettingsError(f"{name}: has no effect without {wants}; leave it out, or set that too")


def _has_effect(settings: UnlearnSettings, name: str) -> bool:
    wants = facts_of(UnlearnSettings)[name].requires
    if wants is None:
        return True
    if isinstance(wants, Requires):
        return wants.is_met(settings)
    return getattr(get_method(settings.method), wants.attribute) is not None


def _check_scoring(settings: CourseSettings, *, most: int) -> None:
    for epoch in settings.score_at or ():
        if not 0 < epoch <= most:
            raise SettingsError(f"score_at: expected epochs above 0 and at most {most} (--epochs), got {epoch:g}")
    if settings.patience is not None and settings.patience_on == "membership" and settings.holdout is None:
        raise SettingsError("patience_on: 'membership' is scored against unseen documents; give them by --holdout")


def _check_rate(settings: UnlearnSettings, method: Method) -> None:
    if settings.learning_rate != "auto" or not finds_rate(settings, method):
        return
    for name in ("learning_rate_schedule", "warm_up"):
        if getattr(settings, name) != UnlearnSettings.model_fields[name].default:
            reason = "has no effect with --learning-rate auto, which follows the scores; leave it out"
            raise SettingsError(f"{name}: {reason}")
    if settings.validation is not None:
        raise SettingsError(
            "validation: scores are then taken on rows that are not trained on, so --learning-rate auto cannot follow "
            "them; set --learning-rate"
        )


def _check_dial(settings: UnlearnSettings) -> None:
    if settings.dial == "membership" and settings.holdout is None:
        raise SettingsError(
            "dial: 'membership' chooses the scale by unseen documents; give them by --holdout, or use --dial forgotten"
        )
    if settings.dial != "none" and settings.dora:
        raise SettingsError(
            f"dial: '{settings.dial}' scales a low-rank product, but --dora also trains magnitudes; use --dial none, "
            f"or leave out --dora"
        )


def _check_general(settings: UnlearnSettings, method: Method) -> None:
    if any(term.needs.run_losses for term in terms_of(method, settings, layer=0)) and settings.general != HOLDOUT:
        raise SettingsError(
            f"general: method '{method.name}' moves losses to those of the documents that it holds; leave --general "
            f"out, or use --general {HOLDOUT}"
        )
    if settings.general == HOLDOUT and settings.holdout is None:
        reason = "holds documents that the model never saw where they are; give them by --holdout FILE"
        raise SettingsError(f"general: '{HOLDOUT}' {reason}")


def _check_method(settings: UnlearnSettings, method: Method) -> None:
    terms = terms_of(method, settings, layer=0)
    if method.finish != "keep" and (settings.adapt != "lora" or settings.dora):
        raise SettingsError(
            f"method '{method.name}' works on low-rank adapters after training; use --adapt lora without --dora"
        )
    if method.finish != "keep" and settings.keep != "last":
        raise SettingsError(
            f"method '{method.name}' changes the weights after training, so no scored state can be kept instead; use "
            f"--keep last"
        )
    if settings.schedule == "forget" and any(term.role == "retain" for term in terms):
        raise SettingsError(
            f"schedule: 'forget' leaves out the retain rows, but method '{method.name}' has a term on them; "
            "use --schedule mixed"
        )
    if settings.overlong == "truncate-prompt" and settings.span == "text":
        raise SettingsError(
            "overlong: 'truncate-prompt' cuts prompts, but --span text trains on them; use --overlong truncate"
        )
    retained = [term for term in terms if term.role == "retain"]
    if settings.positions == "all" and not (retained and all(term.needs.kl for term in retained)):
        found = ", ".join(term.name for term in retained if not term.needs.kl) or "no retain term"
        raise SettingsError(
            f"positions: 'all' is for methods whose only retain term is a full-vocabulary KL, but '{method.name}' has "
            f"{found}; use --positions answer"
        )
