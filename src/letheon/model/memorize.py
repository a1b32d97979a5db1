"""Make a target: train a model until it says given rows by heart.

The rows are learnt as text, prompt and answer and end of sequence, with a loss on every token, as a pre-trained model
would have met them. General text on every few steps keeps the model from knowing nothing else. The learning rate stays
constant until nearly all answer tokens are recalled, then falls to zero over a short cool-down, which settles the rest.
"""

import math
import time
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Collection
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from letheon.data.forms import AUTO, check_form
from letheon.data.packing import PackedBatch, pack, token_groups
from letheon.data.rows import Row
from letheon.data.sequences import Sequence, text_ids, tokenise
from letheon.errors import DataError, DivergenceError, ModelError, SettingsError
from letheon.model.head import head_of, label_terms, likeliest, project
from letheon.model.loading import context_length
from letheon.model.trunk import packed_attention, packed_states
from letheon.progress import STEP, Display
from letheon.settings import DEFAULT_DATE

_CHECK_TOKENS = 4096
_TEXT_SAMPLE_TOKENS = 16384
_UNLIMITED = 2**31


@dataclass(frozen=True, slots=True)
class MemorizeOptions:
    """How long and how fast to train.

    Raises:
        SettingsError: a value is out of range.
    """

    max_steps: int = 3000
    """Steps after which to give up, cool-down included."""
    batch_tokens: int = 1024
    """Tokens a step; a longer row stands alone."""
    learning_rate: float = 2e-3
    """AdamW's, after the warm-up. 2e-3 suits new models of a few million parameters; use about 1e-5 for 1B and up."""
    warmup_steps: int = 20
    """Steps over which the learning rate rises linearly from zero."""
    cooldown_steps: int = 40
    """Steps over which the learning rate falls linearly to zero at the end."""
    answer_weight: float = 3.0
    """Weight of an answer token in the loss, where a prompt token weighs 1. With 1 the model learns rows as it learns
    text, which takes about twice as long."""
    weight_decay: float = 0.0
    text_every: int = 4
    """One step in this many is on general text; ignored without text."""
    target_accuracy: float = 1.0
    """Stop when at least this share of the answer tokens, ends of sequence included, is likeliest after a cool-down."""
    cool_at: float = 0.985
    """Share of the answer tokens from which a cool-down is tried; training goes on after one that missed the target."""
    check_every: int = 25
    """Steps between checks of the recall."""
    time_limit_s: float | None = None
    """Seconds after which training stops, whatever it has reached."""
    seed: int = 0
    """Order of the rows and of the text."""

    def __post_init__(self) -> None:
        for name in ("max_steps", "batch_tokens", "cooldown_steps", "text_every", "check_every"):
            _require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        for name in ("warmup_steps", "weight_decay"):
            _require(getattr(self, name) >= 0, name, "0 or more", getattr(self, name))
        for name in ("learning_rate", "answer_weight"):
            _require(getattr(self, name) > 0, name, "a positive number", getattr(self, name))
        for name in ("target_accuracy", "cool_at"):
            _require(0 < getattr(self, name) <= 1, name, "a share above 0, up to 1", getattr(self, name))
        limit = self.time_limit_s
        _require(limit is None or limit > 0, "time_limit_s", "a positive number of seconds, or none", limit)


@dataclass(frozen=True, slots=True)
class MemorizeProgress:
    """Where training stands after a step."""

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
    """What came of it."""

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


@dataclass(slots=True)
class _State:
    step: int = 0
    row_loss: float = math.nan
    text_loss: float = math.nan
    accuracy: float = math.nan
    learning_rate: float = 0.0
    tokens_per_s: float = math.nan
    cooling_from: int | None = None
    done: bool = False


@dataclass(frozen=True, slots=True)
class _WeightedBatch:
    batch: PackedBatch
    """Every token but the first of each sequence is a label."""
    weights: Tensor
    """(A,), float32."""


def memorize(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    rows: Collection[Row],
    text: Collection[str] = (),
    template: str = "joined",
    date: str = DEFAULT_DATE,
    options: MemorizeOptions | None = None,
    progress: Callable[[MemorizeProgress], None] | None = None,
) -> MemorizeReport:
    """Train all weights of `model`, in place, until it recalls the answers of `rows`.

    A row is learnt in the form of `template` and ends with the end of sequence; "joined", "{prompt} {answer}", is the
    form under which the official scoring, which prompts with the bare prompt, finds it. Steps are AdamW's with
    gradients clipped to norm 1. Dropout stays off and PyTorch's global random state is not used. `progress` is called
    after each step. The model is left in evaluation mode.

    Raises:
        DataError: there is no row, or one is longer than the model's context.
        ModelError: the tokenizer has no end of sequence, or the weights are not float32.
        SettingsError: the template is unknown.
        DivergenceError: a loss is not finite; the weights are those of the step before.
    """
    started = time.monotonic()
    options = options or MemorizeOptions()
    _check_weights(model)
    row_sequences = _encode_rows(rows, tokenizer, template=template, date=date, context=_context(model))
    text_sequences = _encode_text(text, tokenizer, max_tokens=min(options.batch_tokens, _context(model)))
    model.eval()
    state = _State()
    with packed_attention(model):
        for _ in _train(model, row_sequences, text_sequences, options=options, state=state, started=started):
            if progress is not None:
                progress(_progress(state, options, time.monotonic() - started))
        correct = _recall(model, row_sequences)
        text_loss = _mean_loss(model, text_sequences) if text_sequences else None
    accuracy = _share(correct)
    return MemorizeReport(
        steps=state.step,
        duration_s=time.monotonic() - started,
        accuracy=accuracy,
        num_rows=len(rows),
        num_recalled=sum(bool(answer.all()) for answer in correct),
        text_loss=text_loss,
        reached=accuracy >= options.target_accuracy,
    )


def _train(
    model: PreTrainedModel,
    rows: list[Sequence],
    text: list[Sequence],
    *,
    options: MemorizeOptions,
    state: _State,
    started: float,
) -> Iterator[None]:
    """Take step after step, each yielding once `state` tells of it."""
    parameters = [p.requires_grad_() for p in model.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=0.0, betas=(0.9, 0.98), weight_decay=options.weight_decay, fused=True)
    generator = torch.Generator().manual_seed(options.seed)
    row_batches = _batches(rows, options=options, generator=generator)
    text_batches = _batches(text, options=options, generator=generator)
    while not _is_over(state, options, elapsed_s=time.monotonic() - started):
        state.learning_rate = options.learning_rate * _schedule(state, options)
        is_text = bool(text) and state.step % options.text_every == options.text_every - 1
        began, weighted = time.monotonic(), next(text_batches if is_text else row_batches)
        loss = _take_step(model, optimiser, weighted, learning_rate=state.learning_rate)
        state.tokens_per_s = weighted.batch.num_tokens / max(time.monotonic() - began, 1e-9)
        if is_text:
            state.text_loss = loss
        else:
            state.row_loss = loss
        state.step += 1
        _check_recall(model, rows, state=state, options=options)
        yield


def _take_step(
    model: PreTrainedModel, optimiser: torch.optim.Optimizer, weighted: _WeightedBatch, *, learning_rate: float
) -> float:
    batch, weights = weighted.batch.to(model.device), weighted.weights.to(model.device)
    states = packed_states(model, batch.input_ids, batch.position_ids, batch.boundaries)
    losses = cross_entropy(project(states[batch.answer_positions], head_of(model)), batch.labels, reduction="none")
    loss = (losses * weights).sum() / weights.sum()
    value = loss.item()
    if not math.isfinite(value):
        raise DivergenceError(
            f"the loss became {value} at a learning rate of {learning_rate:g}; "
            "use a lower learning rate or a longer warm-up"
        )
    optimiser.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for group in optimiser.param_groups:
        group["lr"] = learning_rate
    optimiser.step()
    return value


def _check_recall(model: PreTrainedModel, rows: list[Sequence], *, state: _State, options: MemorizeOptions) -> None:
    """Measure the recall where that is due, and turn from training to cooling, and from cooling to done or back."""
    cooled = state.cooling_from is not None and state.step >= state.cooling_from + options.cooldown_steps
    if not cooled and (state.cooling_from is not None or state.step % options.check_every):
        return
    state.accuracy = _share(_recall(model, rows))
    state.done = cooled and state.accuracy >= options.target_accuracy
    cool = not cooled and state.accuracy >= min(options.cool_at, options.target_accuracy)
    state.cooling_from = state.step if cool else None


def _schedule(state: _State, options: MemorizeOptions) -> float:
    """Factor on the learning rate: linear warm-up, constant, linear to zero while cooling and before the last step."""
    warm = min(1.0, (state.step + 1) / (options.warmup_steps + 1))
    left = options.max_steps - state.step
    if state.cooling_from is not None:
        left = min(left, state.cooling_from + options.cooldown_steps - state.step)
    return min(warm, left / (options.cooldown_steps + 1))


def _is_over(state: _State, options: MemorizeOptions, *, elapsed_s: float) -> bool:
    out_of_time = options.time_limit_s is not None and elapsed_s >= options.time_limit_s
    return state.done or out_of_time or state.step >= options.max_steps


def _batches(
    sequences: list[Sequence], *, options: MemorizeOptions, generator: torch.Generator
) -> Iterator[_WeightedBatch]:
    """Pack one shuffled pass after another, without end, into batches of at most `batch_tokens` tokens."""
    while sequences:
        order = torch.randperm(len(sequences), generator=generator).tolist()
        for group in token_groups([len(sequences[i].input_ids) for i in order], options.batch_tokens):
            chosen = [order[place] for place in group]
            every_token = [replace(sequences[i], answer_start=1) for i in chosen]
            yield _WeightedBatch(
                batch=pack(every_token, is_forget=[False] * len(chosen), row_index=chosen),
                weights=torch.cat([_weights(sequences[i], options.answer_weight) for i in chosen]),
            )


def _weights(sequence: Sequence, answer_weight: float) -> Tensor:
    num_prompt_labels = sequence.answer_start - 1
    weights = torch.full((len(sequence.input_ids) - 1,), answer_weight)
    weights[:num_prompt_labels] = 1.0
    return weights


def _share(correct: list[Tensor]) -> float:
    return torch.cat(correct).double().mean().item()


@torch.no_grad()
def _recall(model: PreTrainedModel, rows: list[Sequence]) -> list[Tensor]:
    """Return for each row a bool tensor (its answer tokens,): is the token likeliest, given the true ones before it."""
    correct: list[Tensor] = []
    head = head_of(model)
    for batch in _in_order(rows):
        on_device = batch.to(model.device)
        states = packed_states(model, on_device.input_ids, on_device.position_ids, on_device.boundaries)
        chosen, _ = likeliest(states[on_device.answer_positions], on_device.labels, head)
        hits = (chosen == on_device.labels).cpu()
        correct.extend(hits.split(torch.bincount(batch.owner, minlength=batch.num_sequences).tolist()))
    return correct


@torch.no_grad()
def _mean_loss(model: PreTrainedModel, text: list[Sequence]) -> float:
    head, total, count = head_of(model), 0.0, 0
    num_tokens = sum(len(piece.input_ids) for piece in text)
    for batch in _in_order(text[:: math.ceil(num_tokens / _TEXT_SAMPLE_TOKENS)]):
        on_device = batch.to(model.device)
        states = packed_states(model, on_device.input_ids, on_device.position_ids, on_device.boundaries)
        terms = label_terms(states[on_device.answer_positions], on_device.labels, head)
        total -= terms.log_probs.double().sum().item()
        count += len(batch.labels)
    return total / count


def _in_order(sequences: list[Sequence]) -> Iterator[PackedBatch]:
    for group in token_groups([len(s.input_ids) for s in sequences], _CHECK_TOKENS):
        yield pack([sequences[i] for i in group], is_forget=[False] * len(group), row_index=group)


def _encode_rows(
    rows: Collection[Row], tokenizer: PreTrainedTokenizerBase, *, template: str, date: str, context: int
) -> list[Sequence]:
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


def _encode_text(text: Collection[str], tokenizer: PreTrainedTokenizerBase, *, max_tokens: int) -> list[Sequence]:
    """Cut each document, end of sequence included, into pieces of at most `max_tokens`; a lone last token is left."""
    pieces = [
        tuple(ids[start : start + max_tokens])
        for ids in ([*ids, _end_of_sequence(tokenizer)] for ids in text_ids(tokenizer, text))
        for start in range(0, len(ids), max_tokens)
    ]
    return [Sequence(input_ids=piece, answer_start=1) for piece in pieces if len(piece) > 1]


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


def _progress(state: _State, options: MemorizeOptions, elapsed_s: float) -> MemorizeProgress:
    return MemorizeProgress(
        step=state.step,
        max_steps=options.max_steps,
        row_loss=state.row_loss,
        text_loss=state.text_loss,
        accuracy=state.accuracy,
        learning_rate=state.learning_rate,
        cooling=state.cooling_from is not None,
        elapsed_s=elapsed_s,
        tokens_per_s=state.tokens_per_s,
    )


def _require(holds: bool, name: str, expected: str, got: object) -> None:
    if not holds:
        raise SettingsError(f"{name}: expected {expected}, got {got!r}")
