"""Memorising as a job of the loop: rows and general text, every token of them, until the rows are recalled.

A step is on rows or on general text. It ends when a cool-down, in which the learning rate falls to zero, leaves enough
of the answer tokens recalled.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from letheon.data.packing import PASS_TOKENS, PackedBatch, pack, token_groups
from letheon.data.sequences import TokenSequence
from letheon.engine.engine import Engine
from letheon.memorizing.options import MemorizeOptions
from letheon.model.adapted import Adapted
from letheon.objective.values import Loss
from letheon.processes import share_by_size, shared
from letheon.progress import Progressed
from letheon.training.job import Factors, Piece
from letheon.training.judge import SCORE, Better, History, StateScore

_MOST_NAMED = 16
_TEXT_SAMPLE_TOKENS = 16384


@dataclass(slots=True)
class MemorizeSchedule:
    """One shuffled pass after another, in steps of at most `batch_tokens` tokens; every so many steps one is on text.

    Rows are numbered first, then pieces of text. The steps follow from the seed alone.
    """

    lengths: Sequence[int]
    """Tokens of each row and of each piece of text."""
    num_rows: int
    options: MemorizeOptions
    steps: list[list[int]] = field(default_factory=list)
    """Those drawn so far."""
    drawn: tuple[Iterator[list[int]], Iterator[list[int]]] = field(init=False)
    """What steps on rows and on text are taken from."""

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.options.seed)
        numbers = range(len(self.lengths))
        self.drawn = (
            self._passes(numbers[: self.num_rows], generator),
            self._passes(numbers[self.num_rows :], generator),
        )

    @property
    def num_steps(self) -> int:
        """Steps of the whole job."""
        return self.options.max_steps

    @property
    def steps_per_epoch(self) -> int:
        """About how many steps a pass over the rows takes."""
        return max(1, round(sum(self.lengths[: self.num_rows]) / self.options.batch_tokens))

    def is_text(self, step: int) -> bool:
        """Return whether a step is on general text."""
        every = self.options.text_every
        return len(self.lengths) > self.num_rows and step % every == every - 1

    def rows(self, step: int) -> list[int]:
        """Return the rows, or pieces of text, of a step."""
        while len(self.steps) <= step:
            self.steps.append(next(self.drawn[self.is_text(len(self.steps))]))
        return self.steps[step]

    def block(self, step: int) -> tuple[int, int]:  # noqa: ARG002 - one block for all
        """Return the whole job."""
        return 0, self.num_steps

    def _passes(self, numbers: Sequence[int], generator: torch.Generator) -> Iterator[list[int]]:
        """Yield one shuffled pass after another, without end, in groups of at most `batch_tokens` tokens."""
        while numbers:
            order = [numbers[place] for place in torch.randperm(len(numbers), generator=generator).tolist()]
            for group in token_groups([self.lengths[number] for number in order], self.options.batch_tokens):
                yield [order[place] for place in group]


@dataclass(frozen=True, slots=True)
class RecallJudge:
    """Judges by the share of answer tokens, ends of sequence included, that are likeliest given the true ones before.

    Its scores are that share and, as `num_recalled`, the rows of which every answer token is.
    """

    engine: Engine
    rows: Sequence[TokenSequence]

    @property
    def better(self) -> Mapping[str, Better]:
        """More is better."""
        return {SCORE: "higher", "num_recalled": "higher"}

    @property
    def num_tokens(self) -> int:
        """How many tokens a scoring reads."""
        return sum(len(row.input_ids) for row in self.rows)

    @torch.no_grad()
    def score(self, *, step: int, epoch: float, progress: Progressed | None = None) -> StateScore:
        """Score the present state."""

        def hits_of(batch: PackedBatch) -> list[Tensor]:
            on_device = batch.to(self.engine.model.device)
            chosen, _ = self.engine.likeliest(on_device)
            hits = (chosen == on_device.labels).cpu()
            return list(hits.split(torch.bincount(batch.owner, minlength=batch.num_sequences).tolist()))

        batches = list(in_order(self.rows))
        counts = [batch.num_sequences for batch in batches]
        shown = None if progress is None else partial(progress, "scoring")
        correct = list(chain(*shared(batches, hits_of, counts=counts, progress=shown)))
        share = torch.cat(correct).double().mean().item()
        return StateScore(step, epoch, {SCORE: share, "num_recalled": sum(bool(row.all()) for row in correct)})

    def collapse(self, score: StateScore) -> str | None:  # noqa: ARG002 - nothing is to be kept
        """Return None: no state is worse than its score."""
        return None

    def noise(self, score: StateScore) -> float:  # noqa: ARG002 - the score alone chooses
        """Return 0."""
        return 0.0

    def is_preferred(self, score: StateScore) -> bool:  # noqa: ARG002 - none is
        """Return False."""
        return False

    def describe(self, score: StateScore) -> str:
        """Say how much is recalled."""
        return f"step {score.step}: recalls {score.score:.4f} of the answer tokens"


@dataclass(frozen=True, slots=True)
class MemorizeCourse:
    """The learning rate stays constant until nearly all is recalled, then falls to zero over a short cool-down.

    Training goes on after a cool-down that left too little recalled.
    """

    options: MemorizeOptions

    @property
    def total_steps(self) -> int:
        """Steps after which it is given up."""
        return self.options.max_steps

    @property
    def held_steps(self) -> frozenset[int]:
        """None: nothing is saved."""
        return frozenset()

    @property
    def ends_on_collapse(self) -> bool:
        """Return False: broken weights are an error."""
        return False

    def optimiser(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Return AdamW."""
        decay = self.options.weight_decay
        return torch.optim.AdamW(parameters, lr=0.0, betas=(0.9, 0.98), weight_decay=decay, fused=True)

    def learning_rate(self, step: int, history: History) -> float:
        """Rise linearly, stay, and fall linearly to zero while cooling and before the last step."""
        options, began = self.options, self.cooling_from(history)
        warm = min(1.0, (step + 1) / (options.warmup_steps + 1))
        left = options.max_steps - step
        if began is not None:
            left = min(left, began + options.cooldown_steps - step)
        return options.learning_rate * min(warm, left / (options.cooldown_steps + 1))

    def max_gradient_norm(self, step: int, norms: Sequence[float]) -> float:  # noqa: ARG002 - it is set
        """Return what the gradient is clipped to."""
        return 1.0

    def factors(self, history: History) -> Mapping[str, float]:  # noqa: ARG002 - none changes
        """Return nothing: weights are fixed, or follow the method's control."""
        return {}

    def is_due(self, step: int, history: History) -> bool:
        """Return whether the recall is measured: regularly, but of a cool-down only at its end."""
        began = self.cooling_from(history)
        return step % self.options.check_every == 0 if began is None else step >= began + self.options.cooldown_steps

    def why_stop(self, history: History) -> str | None:
        """End where a cool-down leaves enough recalled."""
        began, last = self.cooling_from(history[:-1]), history[-1]
        cooled = began is not None and last.step >= began + self.options.cooldown_steps
        return "memorised" if cooled and last.score >= self.options.target_accuracy else None

    def kept(self, history: History) -> StateScore:
        """Return the last state."""
        return history[-1]

    def goes_back_to(self, history: History) -> StateScore | None:  # noqa: ARG002 - it never does
        """Return None: training goes on from where it is."""
        return None

    def needed(self, history: History) -> frozenset[int]:  # noqa: ARG002 - as in `held_steps`
        """Return nothing: no state is saved."""
        return frozenset()

    def cooling_from(self, history: History) -> int | None:
        """Return the step at which the present cool-down began, None outside one."""
        began: int | None = None
        for score in history:
            if began is None:
                enough = min(self.options.cool_at, self.options.target_accuracy)
                began = score.step if score.score >= enough else None
            elif score.step >= began + self.options.cooldown_steps:
                began = None
        return began


@dataclass(frozen=True, slots=True)
class MemorizeJob:
    """Rows, then pieces of general text, with a loss on every token; an answer token weighs more."""

    engine: Engine
    adapted: Adapted
    names: Sequence[str]
    """Of the rows."""
    sequences: Sequence[TokenSequence]
    """Of the rows, with their answers marked, then of the text."""
    schedule: MemorizeSchedule
    answer_weight: float
    control: None = None
    read: Mapping[str, Any] = field(default_factory=dict)
    forward_token_s: float = 0.0
    advice: str = "use a lower learning rate or a longer warm-up"

    @property
    def part_names(self) -> tuple[str, ...]:
        """The loss on rows, or on text."""
        return ("rows", "text")

    @property
    def judge(self) -> RecallJudge:
        """How its states are judged."""
        return RecallJudge(self.engine, self.sequences[: len(self.names)])

    def running(self) -> AbstractContextManager[None]:
        """Return a context in which the model can be run."""
        return self.engine.running()

    def rows_of_step(self, step: int, factors: Factors | None = None) -> list[int]:  # noqa: ARG002 - there are none
        """Return the rows, or pieces of text, of a step."""
        return self.schedule.rows(step)

    def pieces(self, rows: Sequence[int], *, max_tokens: int) -> list[Piece]:
        """Return the pieces that a step is computed in, each with its share of the weighted mean."""
        weights = [self._weights(row) for row in rows]
        whole = sum(float(one.sum()) for one in weights)
        name = "rows" if all(row < len(self.names) for row in rows) else "text"
        lengths = [len(self.sequences[row].input_ids) for row in rows]
        own = share_by_size(lengths)
        found = []
        for group in token_groups([lengths[place] for place in own], max_tokens):
            places = [own[number] for number in group]
            batch = every_token([self.sequences[rows[place]] for place in places]).to(self.engine.model.device)
            share = torch.cat([weights[place] for place in places]).to(batch.labels.device) / whole
            found.append(Piece(batch, partial(self._loss, batch, share, name)))
        return found

    def num_tokens_of(self, rows: Sequence[int]) -> int:
        """Return how many tokens the rows have."""
        return sum(len(self.sequences[row].input_ids) for row in rows)

    def total(self, parts: Mapping[str, float | None], factors: Factors) -> float:  # noqa: ARG002 - there are none
        """Return the one part that a step has."""
        return sum(part or 0.0 for part in parts.values())

    def ids_of(self, rows: Sequence[int]) -> str:
        """Name the rows."""
        named = [self.names[row] for row in rows if row < len(self.names)][:_MOST_NAMED]
        return ", ".join(named) or "general text"

    def _weights(self, row: int) -> Tensor:
        """(T - 1,) float32, what each token but the first weighs."""
        sequence = self.sequences[row]
        weights = torch.full((len(sequence.input_ids) - 1,), self.answer_weight)
        weights[: sequence.answer_start - 1] = 1.0
        return weights

    def _loss(self, batch: PackedBatch, share: Tensor, name: str, factors: Factors) -> Loss:  # noqa: ARG002
        loss = -(self.engine.label_values(batch).log_probs * share).sum()
        return Loss(loss, {name: loss})


@torch.no_grad()
def mean_loss(engine: Engine, text: Sequence[TokenSequence]) -> float:
    """Return the mean token cross-entropy on an even sample of the text, about 16 thousand tokens, nats."""
    num_tokens = sum(len(piece.input_ids) for piece in text)

    def loss_of(batch: PackedBatch) -> tuple[float, int]:
        log_probs = engine.label_values(batch.to(engine.model.device)).log_probs
        return -log_probs.cpu().double().sum().item(), len(batch.labels)

    found = shared(list(in_order(text[:: math.ceil(num_tokens / _TEXT_SAMPLE_TOKENS)])), loss_of)
    return sum(loss for loss, _ in found) / sum(count for _, count in found)


def every_token(sequences: Sequence[TokenSequence]) -> PackedBatch:
    """Pack sequences with every token but the first of each as a label."""
    whole = [replace(sequence, answer_start=1) for sequence in sequences]
    return pack(whole, is_forget=[False] * len(whole), row_index=range(len(whole)))


def in_order(sequences: Sequence[TokenSequence]) -> Iterator[PackedBatch]:
    """Pack sequences, with their answers as labels, into batches for passes without gradients."""
    for group in token_groups([len(sequence.input_ids) for sequence in sequences], PASS_TOKENS):
        yield pack([sequences[i] for i in group], is_forget=[False] * len(group), row_index=group)
