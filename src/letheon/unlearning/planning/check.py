"""Planning a run from its settings and rows, and refusing one that cannot fit."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from letheon.data.forms import AUTO, forms_to_try
from letheon.data.probing import ROUNDS
from letheon.errors import ModelError, SettingsError
from letheon.model.layers import beyond
from letheon.model.loading import load_config
from letheon.model.precision import resolved_precision
from letheon.model.targets import find_targets, narrowest
from letheon.model.weights import train_weights
from letheon.settings import FormSettings, UnlearnSettings
from letheon.unlearning.formed_rows import NUM_END_ROWS, planned_rows, planned_sequences
from letheon.unlearning.general import general_schedule, planned_general
from letheon.unlearning.inputs import Inputs
from letheon.unlearning.planning.advice import advise, describe_fit, gib, is_impossible, is_tight
from letheon.unlearning.planning.demand import Data, Demand, demand_of
from letheon.unlearning.planning.estimate import Plan, estimate
from letheon.unlearning.planning.machine import Machine, machine_of, measure_rates, num_processes, process_memory
from letheon.unlearning.planning.trace import empty_model
from letheon.unlearning.probes import kept_sequences, probes_of, waits_on_kl
from letheon.unlearning.resolve import build_schedule, method_of, terms_of

SMALL = 1000
"""Memory over weights from which on nothing is checked: the activations of 16,384 tokens, the most at once by default,
are less than 2 * 16,384 / width times the weights, which is about 500 at a width of 64."""
_USUAL_TOKENS = int(UnlearnSettings.model_fields["max_batch_tokens"].default)
_USUAL_RANKS = 64
"""Ranks up to which an adapter is small beside its model."""


@dataclass(frozen=True, slots=True)
class Planned:
    """What a run needs, what the machine has, and the refusal if it cannot fit."""

    plan: Plan
    machine: Machine
    refusal: SettingsError | None


def plan_with_rates(settings: UnlearnSettings, inputs: Inputs) -> Planned:
    """Return the plan of resolved settings, its time from rates measured here, and the refusal of what cannot fit.

    Raises:
        ModelError: the model's configuration cannot be read or made a model of, or its modules do not fit the settings.
    """
    machine = machine_of(settings)
    plan = plan_run(settings, inputs, machine=machine, counts_work=True)
    width = int(load_config(settings.model, trust_remote_code=settings.trust_remote_code).get_text_config().hidden_size)
    rates = measure_rates(resolved_precision(settings.dtype), machine.device, width=width)
    found = refusal(settings, inputs, plan, machine) if is_impossible(plan, machine) else None
    return Planned(replace(plan, rates=rates), machine, found)


def check_fit(settings: UnlearnSettings, inputs: Inputs, *, note: Callable[[str], None]) -> None:
    """Refuse a run whose tensors alone are more than this machine's memory; note one that may not fit.

    What cannot be planned is not refused: an architecture that transformers does not know without its weights, a
    machine that does not say what it has.

    Raises:
        SettingsError: the run cannot fit; says which settings would.
    """
    machine = machine_of(settings)
    if is_small(settings, machine) or is_small(settings, machine, num_tokens=_most_at_once(settings, inputs)):
        return
    try:
        plan = plan_run(settings, inputs, machine=machine)
    except ModelError:
        return
    if is_impossible(plan, machine):
        raise refusal(settings, inputs, plan, machine)
    if is_tight(plan, machine):
        note(f"this run may not fit: {describe_fit(plan, machine)}; --plan shows all parts")


def check_targets(settings: UnlearnSettings, *, note: Callable[[str], None] | None = None) -> None:
    """Refuse names of modules that the model does not have, as far as that is known without its weights.

    `note` hears of a rank that is larger than a matrix can use, and of a span of layers that goes beyond the model's:
    both are trained as far as they can be.

    Raises:
        ModelError: naming the first of them, and those that there are.
        SettingsError: `layers` names no layer.
    """
    config = load_config(settings.model, trust_remote_code=settings.trust_remote_code)
    try:
        model = empty_model(
            config,
            resolved_precision(settings.dtype),
            trust_remote_code=settings.trust_remote_code,
            quantise=settings.quantise,
        )
    except ModelError:
        return  # loading says why, if it fails too
    if settings.adapt == "lora" and not settings.target_modules:
        raise SettingsError("target_modules: expected at least one name, or all-linear; leave it out for the default")
    if settings.adapt == "lora":
        takes_parameters = not settings.dora and not settings.lora_dropout
        targets = find_targets(
            model, settings.target_modules or (), layers=settings.layers, takes_parameters=takes_parameters
        )
        said = _wasted_rank(settings.rank, *narrowest(model, targets))
    else:
        train_weights(model, modules=settings.target_modules or (), layers=settings.layers)
        said = None
    num_layers = int(config.get_text_config().num_hidden_layers)
    unknown = None if settings.layers is None else beyond(settings.layers, num_layers)
    for message in (said, unknown):
        if message is not None and note is not None:
            note(message)


def _wasted_rank(rank: int, name: str, width: int) -> str | None:
    if rank <= width:
        return None
    return (
        f"WARNING: rank {rank} is above {width}, the smaller side of {name}: the update has rank {width} at most, and "
        f"the rest of the adapter costs memory and time without effect; use --rank {width} or less (scale --alpha "
        f"with it to keep the factor)"
    )


def plan_run(settings: UnlearnSettings, inputs: Inputs, *, machine: Machine, counts_work: bool = False) -> Plan:
    """Return what a run of resolved settings over these rows needs; its operations only if `counts_work`.

    Raises:
        ModelError: as `plan_with_rates`.
    """
    plan = estimate(
        load_config(settings.model, trust_remote_code=settings.trust_remote_code),
        settings,
        _demand(settings, inputs),
        terms=terms_of(method_of(settings), settings),
        device=machine.device,
        process=process_memory(),
        counts_work=counts_work,
        num_processes=num_processes(),
    )
    return replace(plan, notes=(*_unknown(settings, inputs), *plan.notes))


def refusal(settings: UnlearnSettings, inputs: Inputs, plan: Plan, machine: Machine) -> SettingsError:
    """Return the error that says what does not fit, and the settings that would."""
    found = advise(settings, plan, machine, replan=partial(plan_run, inputs=inputs, machine=machine))
    shown = "; or ".join(f"{advice.flags} ({_size(advice.plan)})" for advice in found)
    way_out = f"what would fit: {shown}" if found else (
        "bfloat16 weights, an adapter and smaller steps do not make it fit; use a larger machine or a smaller model"
    )  # fmt: skip
    return SettingsError(f"this run cannot fit: {describe_fit(plan, machine)}; {way_out}")


def _size(plan: Plan) -> str:
    return ", ".join(f"{name} {gib(plan.needed(places))}" for name, places in plan.pools)


def is_small(
    settings: UnlearnSettings, machine: Machine, *, num_runs: int = 1, num_tokens: int = _USUAL_TOKENS
) -> bool:
    """Return whether weights and steps are so small that the runs fit in any case.

    `num_tokens` are computed at once at most; what fewer take is in proportion.
    """
    stored = sum(path.stat().st_size for path in Path(settings.model).glob("*.safetensors"))
    known = [size for size in (machine.memory, machine.gpu_memory) if size is not None]
    usual = settings.max_batch_tokens <= _USUAL_TOKENS and settings.rank <= _USUAL_RANKS
    share = min(num_tokens / _USUAL_TOKENS, 1.0)
    return not known or (usual and 0 < stored * SMALL * share * num_runs < min(known))


def _most_at_once(settings: UnlearnSettings, inputs: Inputs) -> int:
    demand = _demand(settings, inputs)
    return max(piece.num_tokens for piece in (demand.largest, demand.reference_group, demand.scoring_group))


def _demand(settings: UnlearnSettings, inputs: Inputs) -> Demand:
    method = method_of(settings)
    return demand_of(
        settings,
        _data(inputs, settings),
        schedule=build_schedule(settings, inputs.forget, inputs.retain),
        method=method,
        can_split=all(term.splits for term in terms_of(method, settings)),
        num_processes=num_processes(),
    )


def _data(inputs: Inputs, settings: UnlearnSettings) -> Data:
    sequences = planned_sequences(inputs, settings, method=method_of(settings))
    num_left_out = sum(len(rows) for rows in inputs.left_out)
    trained, general = sequences[: len(sequences) - num_left_out], planned_general(inputs, settings)
    probes = probes_of(inputs, planned_rows(inputs, settings), settings, others=trained[len(inputs.rows) :])
    texts = [*inputs.holdout, *probes.forget_texts] if inputs.holdout else []
    kept = kept_sequences(probes, inputs, settings) if waits_on_kl(settings) else []
    return Data(
        trained=[*trained, *general.trained],
        num_forget=len(inputs.forget),
        num_retain=len(inputs.retain),
        scored=[*probes.answers, *texts, *probes.others],
        kept=(*kept, *general.scored),
        choosing_tokens=_choosing_tokens(inputs, settings),
        general=general_schedule(
            settings,
            trained,
            general,
            schedule=build_schedule(settings, inputs.forget, inputs.retain),
            num_forget=len(inputs.forget),
            num_rows=len(inputs.rows),
        ),
    )


def _choosing_tokens(inputs: Inputs, settings: FormSettings) -> int:
    """The tokens of the rows that the template, and the end of retain rows, are chosen by."""
    forget = inputs.sequences[: len(inputs.forget)]
    retain = inputs.sequences[len(inputs.forget) : len(inputs.rows)]
    tokens = 0
    for rows, num_rows, times in (
        ([*forget, *retain], sum(ROUNDS), len(forms_to_try(inputs.tokenizer)) if settings.template == AUTO else 0),
        (retain, NUM_END_ROWS, int(settings.end_of_sequence == "auto")),
    ):
        sample = rows[:: -(-len(rows) // num_rows)]
        tokens += times * sum(len(sequence.input_ids) for sequence in sample)
    return tokens


def _unknown(settings: UnlearnSettings, inputs: Inputs) -> list[str]:
    """What a run finds out only with the model, in words."""
    found: list[str] = []
    if settings.template == AUTO:
        found.append("the template is chosen once the model is loaded; tokens are counted as with 'joined'")
    if settings.end_of_sequence == "auto":
        found.append("whether retain rows get an end is decided once the model is loaded; one is counted for each row")
    if settings.learning_rate == "auto":
        found.append(
            f"the run ends once the rows are forgotten; all of its at most {settings.epochs} epochs are counted"
        )
    chosen = method_of(settings).alternatives
    if chosen is not None and chosen.kind == "generated" and inputs.alternatives is None:
        found.append(
            "the model generates the other answers; the longest possible are counted, but not the time for that"
        )
    if settings.general == AUTO:
        found.append("the model writes the general text; the longest possible is counted, but not the time for that")
    if waits_on_kl(settings):
        found.append("the time that the retain KL takes at each scoring is not counted")
    if settings.general is not None:
        found.append("the time that the KL on general text takes at each scoring is not counted")
    return found
