"""Make a target: train a model until it says given rows by heart.

The rows are learnt as text, prompt and answer and end of sequence, with a loss on every token, as a pre-trained model
would have met them. General text on every few steps keeps the model from knowing nothing else.
"""

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from letheon.data.forms import AUTO, check_form
from letheon.data.packing import probe_of
from letheon.data.rows import Row
from letheon.data.sequences import TokenSequence, text_ids, tokenise
from letheon.engine.paths import build_engine
from letheon.errors import DataError, ModelError, SettingsError
from letheon.memorizing.job import MemorizeCourse, MemorizeJob, MemorizeSchedule, mean_loss
from letheon.memorizing.options import MemorizeOptions
from letheon.model.adapted import Adapted
from letheon.model.adapters import LoraAdapter, LoraSettings, attach_lora
from letheon.model.loading import context_length
from letheon.model.taking import fold_in
from letheon.model.weights import train_weights
from letheon.progress import STEP, Display
from letheon.settings import DEFAULT_DATE
from letheon.signals import Interruption
from letheon.training.judge import StateScore
from letheon.training.loop import begin, train
from letheon.training.state import Hooks
from letheon.training.stopping import Clock
from letheon.training.tracking import Log

_UNLIMITED = 2**31


@dataclass(frozen=True, slots=True)
class MemorizeProgress:
    """Where training stands after a step, or a check of the recall."""

    step: int
    """Steps taken."""
    max_steps: int
    row_loss: float
    """Loss of the last step on rows: mean token cross-entropy, weighted, nats; nan before the first."""
    text_loss: float
    """Mean token cross-entropy of the last step on general text, nats; nan before the first."""
    accuracy: float
    """Share of answer tokens that greedy decoding would get right, 0 to 1, at the last check; nan before the first."""
    learning_rate: float
    cooling: bool
    elapsed_s: float
    tokens_per_s: float
    """Of the last step."""


@dataclass(frozen=True, slots=True)
class MemorizeReport:
    """The result of memorising."""

    steps: int
    duration_s: float
    accuracy: float
    """Share of answer tokens, ends of sequence included, that are likeliest given the true tokens before them."""
    num_rows: int
    num_recalled: int
    """Rows of which every answer token is likeliest: greedy decoding from the prompt gives the answer and stops."""
    text_loss: float | None
    """Mean token cross-entropy on an even sample of the general text, about 16 thousand tokens, nats; None without
    text."""
    reached: bool
    """Whether `accuracy` is at least the target; with a target of 1, whether every row is recalled."""


def shown_on(display: Display) -> Callable[[MemorizeProgress], None]:
    """Return a `progress` that shows each step on a display."""

    def show(now: MemorizeProgress) -> None:
        values = {"loss": now.row_loss, "text": now.text_loss, "recalled": now.accuracy, "tok/s": now.tokens_per_s}
        display.show(STEP, now.step, now.max_steps, values, at_most=True)

    return show


@dataclass(frozen=True, slots=True)
class _Loop:
    """What the loop is told."""

    seed: int
    max_batch_tokens: int
    time_limit_s: float | None
    checkpoint_minutes: float | None = None
    keep_checkpoints: int = 1


@dataclass(slots=True)
class _Watcher:
    """Hears of the loop and tells where training stands."""

    options: MemorizeOptions
    course: MemorizeCourse
    tell: Callable[[MemorizeProgress], None]
    began_s: float = field(default_factory=time.monotonic)
    losses: dict[str, float] = field(default_factory=dict)
    """The last loss on rows, and on text."""
    history: list[StateScore] = field(default_factory=list)
    num_steps: int = 0
    tokens_per_s: float = math.nan

    def step(self, done: int, total: int, values: Mapping[str, float | None]) -> None:  # noqa: ARG002 - it is known
        """Tell of a step."""
        self.losses |= {name: value for name in ("rows", "text") if (value := values.get(name)) is not None}
        self.num_steps, self.tokens_per_s = done, values["tok/s"] or 0.0
        self._tell()

    def stage(self, name: str, done: int, total: int) -> None:
        """Ignore a check of the recall: it is short."""

    def note(self, message: str) -> None:
        """Ignore it: `scored` tells."""

    def scored(self, score: StateScore) -> None:
        """Tell of a check of the recall."""
        self.history.append(score)
        self._tell()

    def _tell(self) -> None:
        self.tell(
            MemorizeProgress(
                step=self.num_steps,
                max_steps=self.options.max_steps,
                row_loss=self.losses.get("rows", math.nan),
                text_loss=self.losses.get("text", math.nan),
                accuracy=self.history[-1].score if self.history else math.nan,
                learning_rate=self.course.learning_rate(max(self.num_steps - 1, 0), self.history),
                cooling=self.course.cooling_from(self.history) is not None,
                elapsed_s=time.monotonic() - self.began_s,
                tokens_per_s=self.tokens_per_s,
            )
        )


def memorize(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    rows: Sequence[Row],
    text: Sequence[str] = (),
    template: str = "joined",
    date: str = DEFAULT_DATE,
    options: MemorizeOptions | None = None,
    adapter: LoraSettings | None = None,
    modules: Sequence[str] = (),
    progress: Callable[[MemorizeProgress], None] | None = None,
) -> MemorizeReport:
    """Train `model`, in place, until it recalls the answers of `rows`.

    All weights are trained, or those of `modules`; with `adapter` a LoRA adapter, which is merged at the end, so that
    the model is an ordinary one again.

    A row is learnt in the form of `template` and ends with the end of sequence; "joined", "{prompt} {answer}", is the
    form under which the official scoring, which prompts with the bare prompt, finds it. Steps are AdamW's with
    gradients clipped to norm 1. Dropout stays off and PyTorch's global random state is not used. `progress` is called
    after each step and each check of the recall. The model is left in evaluation mode.

    Raises:
        DataError: there is no row, or one is longer than the model's context.
        ModelError: the tokenizer has no end of sequence, the weights are not float32, the model has no such modules,
            or its forward fails.
        SettingsError: the template is unknown.
        DivergenceError: a loss is not finite; the weights are those of the step before.
    """
    started = time.monotonic()
    options = options or MemorizeOptions()
    _check_weights(model)
    learnt = _encode_rows(rows, tokenizer, template=template, date=date, context=_context(model))
    pieces = _encode_text(text, tokenizer, max_tokens=min(options.batch_tokens, _context(model)))
    adapted = _adapt(model.eval(), adapter, modules, seed=options.seed)
    job = _job(adapted, [row.id for row in rows], learnt, pieces, options)
    course = MemorizeCourse(options)
    settings = _Loop(options.seed, options.batch_tokens, options.time_limit_s)
    watcher = _Watcher(options, course, progress or (lambda _: None), started)
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        run = begin(job, course, settings, hooks=Hooks(Log(nowhere), watcher), checkpoints=None)
        outcome = train(run, clock=Clock(options.time_limit_s, started), interruption=Interruption())
    with job.running():
        text_loss = mean_loss(job.engine, pieces) if pieces else None
    if isinstance(adapted, LoraAdapter):
        fold_in(adapted)
    return MemorizeReport(
        steps=outcome.step,
        duration_s=time.monotonic() - started,
        accuracy=outcome.kept.score,
        num_rows=len(rows),
        num_recalled=int(outcome.kept.values["num_recalled"] or 0),
        text_loss=text_loss,
        reached=outcome.kept.score >= options.target_accuracy,
    )


def _adapt(model: PreTrainedModel, adapter: LoraSettings | None, modules: Sequence[str], *, seed: int) -> Adapted:
    if adapter is not None:
        return attach_lora(model, adapter, seed=seed)
    return train_weights(model, modules=modules, layers=None)


def _job(
    adapted: Adapted,
    names: Sequence[str],
    rows: Sequence[TokenSequence],
    text: Sequence[TokenSequence],
    options: MemorizeOptions,
) -> MemorizeJob:
    engine = build_engine(adapted.model, probe_of(rows).to(adapted.model.device), adapter_off=adapted.off)
    sequences = [*rows, *text]
    schedule = MemorizeSchedule([len(sequence.input_ids) for sequence in sequences], len(rows), options)
    return MemorizeJob(engine, adapted, names, sequences, schedule, options.answer_weight)


def _encode_rows(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, *, template: str, date: str, context: int
) -> list[TokenSequence]:
    if not rows:
        raise DataError("memorize: expected at least one row to memorise, got none")
    check_form(template)
    if template == AUTO:
        raise SettingsError(
            "template: expected a form to learn, got 'auto', which only finds the form that a model knows; use 'joined'"
        )
    _end_of_sequence(tokenizer)
    sequences = []
    for row in rows:
        whole = tokenise(row, tokenizer, template=template, max_length=_UNLIMITED, date=date).ended(_UNLIMITED)
        sequences.append(whole)
        if len(whole.input_ids) > context:
            raise DataError(
                f"row '{row.id}': prompt, answer and end of sequence take {len(whole.input_ids)} tokens, "
                f"but the model's context is {context}; shorten the row or use a model with a longer context"
            )
    return sequences


def _encode_text(text: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, max_tokens: int) -> list[TokenSequence]:
    """Cut each document, end of sequence included, into pieces of at most `max_tokens`; a lone last token is left."""
    pieces = [
        tuple(ids[start : start + max_tokens])
        for ids in ([*ids, _end_of_sequence(tokenizer)] for ids in text_ids(tokenizer, text))
        for start in range(0, len(ids), max_tokens)
    ]
    return [TokenSequence(input_ids=piece, answer_start=1) for piece in pieces if len(piece) > 1]


def _end_of_sequence(tokenizer: PreTrainedTokenizerBase) -> int:
    if tokenizer.eos_token_id is None:
        raise ModelError(
            "the tokenizer has no end-of-sequence token, so no answer can end; set tokenizer.eos_token, or let "
            "memorize train a tokenizer"
        )
    return int(tokenizer.eos_token_id)


def _context(model: PreTrainedModel) -> int:
    return context_length(model.config) or _UNLIMITED


def _check_weights(model: PreTrainedModel) -> None:
    dtypes = {p.dtype for p in model.parameters()}
    if dtypes != {torch.float32}:
        found = ", ".join(sorted(str(d).removeprefix("torch.") for d in dtypes))
        raise ModelError(f"memorize trains float32 weights, got {found}; load the model with dtype float32")
