"""From rows to a problem that the loop can train: template, sequences, adapter, engine, reference."""

import math
from collections.abc import Sequence as Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from transformers import PreTrainedModel

from letheon.data.alternatives import given_alternatives, other_answers, random_tokens, refusals
from letheon.data.packing import PASS_TOKENS, PackedBatch, pack, token_groups
from letheon.data.sequences import Sequence, tokenise_all
from letheon.data.templates import AUTO, TEMPLATES
from letheon.errors import DataError, ModelError
from letheon.model.adapted import Adapted
from letheon.model.adapters import LoraSettings, attach_lora
from letheon.model.alternatives import generate_alternatives, longest_alternatives
from letheon.model.engine import Engine, build_engine
from letheon.model.loading import LoadedModel, fingerprint
from letheon.model.reference import load_or_build_reference, token_terms
from letheon.model.weights import train_weights
from letheon.objective.methods import Method, Needs, needs_of
from letheon.settings import UnlearnSettings
from letheon.training.inputs import Inputs, tokenise_rows
from letheon.training.interim import Probes, interim_score
from letheon.training.loop import Problem
from letheon.training.resolve import build_schedule, coefficients_of, terms_of
from letheon.training.stopping import Start
from letheon.training.tracking import Observer

NUM_PROBE_ROWS = 4
NUM_TEMPLATE_ROWS = 64


@dataclass(frozen=True, slots=True)
class Prepared:
    """A problem and what was found while preparing it."""

    problem: Problem
    template: str
    template_log_probs: dict[str, float]
    """Mean log-probability of a forget answer token under each template tried, nats; empty if none was chosen."""
    fingerprint: str
    notes: tuple[str, ...]
    """What was found and chosen, in words."""


def prepare(
    loaded: LoadedModel,
    inputs: Inputs,
    settings: UnlearnSettings,
    *,
    method: Method,
    cache_dir: Path | None,
    observer: Observer,
) -> Prepared:
    """Choose what is trained in the model and compute what the reference says of the rows.

    The problem is that of the method's first run; the reference serves all of its runs.

    Raises:
        DataError: a row does not fit the model's context under the chosen template.
        ModelError: the modules to adapt are missing, the model's logits are not finite, or the method needs what
            cannot be had of this architecture.
    """
    runs = [terms_of(method, settings, member=number) for number in range(len(method.members))]
    needs = needs_of(tuple(term for terms in runs for term in terms))
    adapted = adapt(loaded.model, settings)
    probe = _probe(inputs.sequences).to(adapted.model.device)
    engine = build_engine(adapted.model, probe, adapter_off=adapted.off)
    _check_possible(engine, adapted, needs, method)
    form = _choose_form(loaded, engine, inputs, settings, method)
    fingerprinted = fingerprint(adapted.model)
    reference = load_or_build_reference(
        engine,
        form.trained,
        num_forget_rows=len(inputs.forget),
        num_retain_rows=len(inputs.retain),
        needs=needs,
        model_fingerprint=fingerprinted,
        cache_dir=cache_dir,
    )
    probes = probes_of(inputs, form.sequences, settings)
    problem = Problem(
        engine=engine,
        adapted=adapted,
        rows=inputs.rows,
        sequences=form.trained,
        num_forget_rows=len(inputs.forget),
        reference=reference,
        terms=runs[0],
        schedule=build_schedule(settings, inputs.forget, inputs.retain),
        probes=probes,
        start=_start(engine, probes, settings),
        alternatives=method.alternatives,
        control=method.control(coefficients_of(method, settings)) if method.control else None,
    )
    check_reference(problem)
    notes = (*engine.notes, *form.notes)
    for note in notes:
        observer.note(note)
    return Prepared(problem, form.template, form.template_log_probs, fingerprinted, notes)


@dataclass(frozen=True, slots=True)
class _Form:
    """The form in which the rows are trained on and scored."""

    template: str
    template_log_probs: dict[str, float]
    sequences: list[Sequence]
    """Of all rows, left-out ones included, with their ends where these are kept."""
    trained: list[Sequence]
    notes: tuple[str, ...]


def _choose_form(
    loaded: LoadedModel, engine: Engine, inputs: Inputs, settings: UnlearnSettings, method: Method
) -> _Form:
    """Settle template and ends with the model where they are to be found out, and put the rows into that form."""
    notes: list[str] = []
    template, log_probs, sequences = settings.template, dict[str, float](), inputs.sequences
    if template == AUTO:
        template, log_probs = choose_template(engine, inputs)
        found = ", ".join(f"{name} {value:.3f}" for name, value in log_probs.items())
        notes.append(f"template '{template}': the forget answers are likeliest under it (nats a token: {found})")
        sets = (inputs.forget, inputs.retain, *inputs.left_out)
        sequences = tokenise_rows(sets, inputs.tokenizer, template=template, max_length=inputs.max_length)
    ends = settings.end_of_sequence == "retain"
    if settings.end_of_sequence == "auto":
        ends, probability = ends_rows(engine, inputs, sequences)
        kept = "is kept" if ends else "is not trained"
        notes.append(f"the model ends its retain answers with probability {probability:.2g}, which {kept}")
    others = _alternatives(loaded, inputs, sequences, settings, method=method, template=template, ends=ends)
    if ends:
        sequences = _with_ends(inputs, sequences)
    trained = [*_trained(sequences[: len(inputs.rows)], settings, inputs), *others]
    num_empty = sum(sequence.num_answer_tokens == 0 for sequence in trained)
    if num_empty:
        notes.append(
            f"{num_empty} rows have no answer token among their first {settings.max_length}: nothing trains on it"
        )
    return _Form(template, log_probs, sequences, trained, tuple(notes))


def adapt(model: PreTrainedModel, settings: UnlearnSettings) -> Adapted:
    """Choose what is trained in a model.

    Raises:
        ModelError: the modules to adapt are missing.
        SettingsError: `layers` names no layer.
    """
    modules = settings.target_modules or ()
    if settings.adapt == "weights":
        return train_weights(model, modules=modules, layers=settings.layers)
    lora = LoraSettings(
        rank=settings.rank,
        alpha=settings.alpha,
        targets=modules,
        layers=settings.layers,
        rank_stabilised=settings.rslora,
        decomposed=settings.dora,
    )
    return attach_lora(model, lora, seed=settings.seed)


def _check_possible(engine: Engine, adapted: Adapted, needs: Needs, method: Method) -> None:
    if engine.path != "logits":
        return
    if needs.activations is not None:
        raise ModelError(
            f"method '{method.name}' needs hidden states, which cannot be had of {type(engine.model).__name__}: it "
            "runs by its own forward here; choose another method"
        )
    if not adapted.is_switchable and (needs.kl is not None or needs.reference_logits):
        raise ModelError(
            f"method '{method.name}' needs the reference's distributions, which {type(engine.model).__name__} has "
            "only while an adapter is switched off; use --adapt lora"
        )


def planned_sequences(inputs: Inputs, settings: UnlearnSettings, *, method: Method) -> list[Sequence]:
    """Return what a run trains on, and after it the rows left out, as far as that is known without the model.

    Under template "auto" the sequences are those of "pair", with end_of_sequence "auto" retain rows are taken as
    ended, and answers that the model is to make up are as long as they can get.
    """
    ends = settings.end_of_sequence != "none"
    num_rows, template = len(inputs.rows), "pair" if settings.template == AUTO else settings.template
    others = _alternatives(None, inputs, inputs.sequences, settings, method=method, template=template, ends=ends)
    sequences = _with_ends(inputs, inputs.sequences) if ends else inputs.sequences
    return [*_trained(sequences[:num_rows], settings, inputs), *others, *sequences[num_rows:]]


def _alternatives(
    loaded: LoadedModel | None,
    inputs: Inputs,
    sequences: Collection[Sequence],
    settings: UnlearnSettings,
    *,
    method: Method,
    template: str,
    ends: bool,
) -> list[Sequence]:
    """Return the sequences with other answers that the method trains on, row after row."""
    chosen, seed = method.alternatives, settings.seed
    if chosen is None:
        return []
    of_forget, is_cut = sequences[: len(inputs.forget)], settings.overlong == "truncate"
    if inputs.alternatives is not None:
        left_out = {row.id for row in inputs.left_out[0]}
        rows = given_alternatives(inputs.forget, inputs.alternatives, per_row=chosen.per_row, left_out=left_out)
    elif chosen.kind == "random-tokens":
        made = random_tokens(of_forget, inputs.tokenizer, per_row=chosen.per_row, seed=seed)
        return _marked(made, settings, inputs)
    elif chosen.kind == "generated":
        rows = []
        if loaded is None:
            made = longest_alternatives(of_forget, per_row=chosen.per_row)
        else:
            made = generate_alternatives(loaded, of_forget, per_row=chosen.per_row, seed=seed)
    else:
        # Another row's answer may be too long for this prompt, for which nobody is to blame.
        make, is_cut = (refusals if chosen.kind == "refusals" else other_answers), True
        rows = make(inputs.forget, per_row=chosen.per_row, seed=seed)
    if rows:
        longest = 10**9 if is_cut else inputs.max_length
        made = tokenise_all(rows, inputs.tokenizer, template=template, max_length=longest)
    return _marked([_ended(sequence, inputs) for sequence in made] if ends else made, settings, inputs)


def _trained(sequences: Collection[Sequence], settings: UnlearnSettings, inputs: Inputs) -> list[Sequence]:
    """Return what is trained on of the rows: the retain rows padded where the KL is taken everywhere."""
    marked = _marked(sequences, settings, inputs)
    if settings.positions == "answer":
        return marked
    num_forget, length = len(inputs.forget), _length(settings, inputs)
    return [*marked[:num_forget], *(_padded(s, length, inputs) for s in marked[num_forget:])]


def _marked(sequences: Collection[Sequence], settings: UnlearnSettings, inputs: Inputs) -> list[Sequence]:
    """Mark what is trained on, answers or whole texts, and cut off what is too long."""
    marked = [replace(s, answer_start=1) for s in sequences] if settings.span == "text" else sequences
    return [_cut(sequence, _length(settings, inputs)) for sequence in marked]


def _length(settings: UnlearnSettings, inputs: Inputs) -> int:
    """How many tokens of a row are trained on."""
    return min(settings.max_length, inputs.max_length)


def _cut(sequence: Sequence, length: int) -> Sequence:
    """What is left of a sequence in `length` tokens; no answer token may be."""
    ids = sequence.input_ids[:length]
    return Sequence(ids, min(sequence.answer_start, len(ids)))


def _padded(sequence: Sequence, length: int, inputs: Inputs) -> Sequence:
    missing = length - len(sequence.input_ids)
    return Sequence(sequence.input_ids + (_end_of_sequence(inputs),) * missing, answer_start=1)


def probes_of(inputs: Inputs, sequences: Collection[Sequence], settings: UnlearnSettings) -> Probes:
    """Return what is scored while a run lasts: its rows, or those that are left out of training."""
    num_rows = len(inputs.rows)
    if settings.validation is None:
        rows, answers, num_forget = inputs.rows, sequences[:num_rows], len(inputs.forget)
    else:
        forget, retain = inputs.left_out
        rows, answers, num_forget = [*forget, *retain], sequences[num_rows:], len(forget)
    return Probes(rows, answers, num_forget, inputs.holdout, settings.holdout_task)


def _start(engine: Engine, probes: Probes, settings: UnlearnSettings) -> Start | None:
    if settings.retain_budget is None and settings.text_budget is None:
        return None
    with engine.running(), engine.adapter_off():
        score = interim_score(engine, probes, step=0, epoch=0.0)
    return Start(retain_loss=score.retain_loss, text_loss=score.text_loss)


@torch.no_grad()
def choose_template(engine: Engine, inputs: Inputs) -> tuple[str, dict[str, float]]:
    """Return the template under which the model finds the forget answers likeliest, and all candidates' values.

    Unlearning a text in a form in which the model never memorised it does little. At most 64 rows, spread over the
    set, are asked; "chat" is tried where the tokenizer has a chat template.
    """
    stride = -(-len(inputs.forget) // NUM_TEMPLATE_ROWS)
    sample = list(inputs.forget)[::stride]
    names = [*TEMPLATES, *(["chat"] if getattr(inputs.tokenizer, "chat_template", None) else [])]
    found: dict[str, float] = {}
    for name in names:
        try:
            sequences = tokenise_all(sample, inputs.tokenizer, template=name, max_length=inputs.max_length)
        except DataError:
            continue  # a longer template may not fit where a shorter one does
        found[name] = _mean_log_prob(engine, sequences)
    return max(found, key=lambda name: found[name]), found


@torch.no_grad()
def ends_rows(engine: Engine, inputs: Inputs, sequences: Collection[Sequence]) -> tuple[bool, float]:
    """Return whether the model ends its retain answers, and how likely it does (geometric mean over at most 64 rows).

    Where it does, that is part of what it is to keep: without the end a right answer runs on, and exact match fails.
    """
    retained = list(sequences)[len(inputs.forget) : len(inputs.rows)]
    stride = -(-len(retained) // NUM_TEMPLATE_ROWS)
    ended = [_ended(s, inputs) for s in retained[::stride]]
    ends = [replace(s, answer_start=len(s.input_ids) - 1) for s in ended]
    probability = math.exp(_mean_log_prob(engine, ends))
    return probability > 0.5, probability


def check_reference(problem: Problem, *, tolerance: float = 1e-3) -> None:
    """Check on a few rows that at the start policy and reference are one: ratio and KL are zero.

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
    with torch.no_grad(), engine.running(), engine.adapter_off():
        values = token_terms(engine, problem.reference, batch, needs=needs_of(problem.terms))
    ratio = _largest(values.log_probs - values.reference_log_probs)
    divergence = 0.0 if values.kl is None else _largest(values.kl)
    # Other batch shapes may round differently where a matrix product is not in float32.
    allowed = tolerance if engine.model.dtype == torch.float32 else 0.25
    if not (ratio <= allowed and divergence <= allowed):
        raise ModelError(
            f"the stored reference does not agree with the model (log-ratio {ratio:.3g}, KL {divergence:.3g} nats, "
            f"at most {allowed:g} expected); remove the cached store (--cache-dir) and run again"
        )


def _largest(values: torch.Tensor) -> float:
    """The largest absolute value; 0 of none (rows cut off before their answers)."""
    return float(values.abs().max()) if values.numel() else 0.0


def _mean_log_prob(engine: Engine, sequences: Collection[Sequence], *, max_tokens: int = PASS_TOKENS) -> float:
    total, count = 0.0, 0
    with engine.running():
        for group in token_groups([len(s.input_ids) for s in sequences], max_tokens):
            batch = pack([sequences[i] for i in group], is_forget=[True] * len(group), row_index=group)
            log_probs = engine.label_terms(batch.to(engine.model.device)).log_probs
            total, count = total + float(log_probs.sum()), count + log_probs.numel()
    return total / count


def _with_ends(inputs: Inputs, sequences: Collection[Sequence]) -> list[Sequence]:
    first = len(inputs.forget)
    left_out_forget = len(inputs.rows), len(inputs.rows) + len(inputs.left_out[0])
    kept = [index < first or left_out_forget[0] <= index < left_out_forget[1] for index in range(len(sequences))]
    return [s if is_forget else _ended(s, inputs) for s, is_forget in zip(sequences, kept, strict=True)]


def _ended(sequence: Sequence, inputs: Inputs) -> Sequence:
    ids = (*sequence.input_ids, _end_of_sequence(inputs))
    return replace(sequence, input_ids=ids[: inputs.max_length])


def _end_of_sequence(inputs: Inputs) -> int:
    return int(cast("int", inputs.tokenizer.eos_token_id))


def _probe(sequences: Collection[Sequence]) -> PackedBatch:
    """Sequences of different lengths, the longest among them: a window that is missed shows only beyond it."""
    by_length = sorted(sequences, key=lambda sequence: len(sequence.input_ids))
    stride = max(1, len(by_length) // NUM_PROBE_ROWS)
    chosen = [*by_length[:-1:stride][: NUM_PROBE_ROWS - 1], by_length[-1]]
    return pack(chosen, is_forget=[True] * len(chosen), row_index=range(len(chosen)))
