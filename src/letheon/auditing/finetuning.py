"""Training a copy of a model on rows, on the loop's packed steps: what relearning does, and what makes controls.

The copy's frozen weights stay as they are; what is trained is float32 whatever the dtype of the model, since a step of
1e-5 would be rounded away in bfloat16.
"""

import copy
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

from transformers import PreTrainedModel

from letheon.auditing.attack import Subject
from letheon.data.packing import probe_of
from letheon.data.rows import Row
from letheon.data.sequences import TokenSequence, text_ids, tokenise
from letheon.engine.paths import build_engine
from letheon.errors import DivergenceError
from letheon.memorizing.job import MemorizeCourse, MemorizeJob, MemorizeSchedule
from letheon.memorizing.options import MemorizeOptions
from letheon.model.adapted import Adapted
from letheon.model.adapters import LoraSettings, attach_lora
from letheon.model.loading import context_length
from letheon.model.targets import ALL_LINEAR
from letheon.model.weights import train_weights
from letheon.training.loop import begin
from letheon.training.state import Hooks, Run
from letheon.training.step import take_step
from letheon.training.tracking import Log, Silent

What = Literal["lora", "weights"]

RANK, ALPHA = 128, 16.0
LEARNING_RATES = {"lora": 2e-4, "weights": 1e-5}
"""Those of attacks on models of 7B parameters, whose width is `FULL_WIDTH`."""
FULL_WIDTH = 4096
MOST_SCALED = 16
"""How many times the learning rate of a small model may be that of a large one."""
BATCH_TOKENS = 512
_UNLIMITED = 2**31
_ENDLESS = 10**9


@dataclass(frozen=True, slots=True)
class _Loop:
    """What the loop is told."""

    seed: int
    max_batch_tokens: int = 4 * BATCH_TOKENS
    time_limit_s: float | None = None
    checkpoint_minutes: float | None = None
    keep_checkpoints: int = 1


@dataclass(frozen=True, slots=True)
class Tuning:
    """A copy of a model while it is trained."""

    subject: Subject
    """The copy, as it can be asked between two steps."""
    run: Run[MemorizeJob]

    def train_to(self, step: int, tell: Callable[[int, int], None]) -> None:
        """Train on until `step` steps are done; called with (steps done, `step`)."""
        with self.run.job.running():
            while self.run.step < step:
                take_step(self.run)
                tell(self.run.step, step)

    @property
    def adapted(self) -> Adapted:
        """What is trained."""
        return self.run.job.adapted


@contextmanager
def tuning(
    subject: Subject, sequences: Sequence[TokenSequence], *, what: What, learning_rate: float | None = None
) -> Iterator[Tuning]:
    """Open the training of a copy of the subject's model on token sequences, AdamW with a constant learning rate.

    The loss is that of memorising: every token of a row, of which an answer's weighs three times as much.
    """
    model = copy.deepcopy(subject.model).eval()
    rate = scaled_rate(model, what) if learning_rate is None else learning_rate
    adapted = _adapted(model, what, seed=subject.seed)
    engine = build_engine(adapted.model, probe_of(sequences).to(adapted.model.device), adapter_off=adapted.off)
    options = MemorizeOptions(
        max_steps=_ENDLESS, batch_tokens=BATCH_TOKENS, learning_rate=rate, warmup_steps=0, seed=subject.seed
    )
    schedule = MemorizeSchedule([len(one.input_ids) for one in sequences], len(sequences), options)
    names = [f"sequence {number}" for number in range(1, len(sequences) + 1)]
    job = MemorizeJob(engine, adapted, names, sequences, schedule, options.answer_weight)
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        course = MemorizeCourse(options)
        run = begin(job, course, _Loop(subject.seed), hooks=Hooks(Log(nowhere), Silent()), checkpoints=None)
        yield Tuning(replace(subject, model=adapted.model), run)


def scaled_rate(model: PreTrainedModel, what: What) -> float:
    """Return the learning rate for a model: that of a 7B model times 4096 / width, at most `MOST_SCALED` times it.

    Adam's steps move a weight by the learning rate whatever its gradient, so what a layer gives moves by the learning
    rate times its width (Yang et al. 2022, arXiv 2203.03466); without this an attack hardly moves a small model.
    """
    width = int(model.config.get_text_config().hidden_size)
    return LEARNING_RATES[what] * min(MOST_SCALED, max(1.0, FULL_WIDTH / width))


def row_sequences(subject: Subject, rows: Sequence[Row]) -> list[TokenSequence]:
    """Return rows in the form in which the model knows them, ends included, cut to the model's context."""
    context = context_length(subject.model.config) or _UNLIMITED
    form, tokenizer = subject.form, subject.tokenizer
    found = [tokenise(row, tokenizer, template=form.template, date=form.date, max_length=_UNLIMITED) for row in rows]
    return [sequence.ended(context) for sequence in found if sequence.answer_start < context]


def text_sequences(subject: Subject, texts: Sequence[str]) -> list[TokenSequence]:
    """Return general text as sequences of at most `BATCH_TOKENS` tokens."""
    longest = min(BATCH_TOKENS, context_length(subject.model.config) or BATCH_TOKENS)
    found = (
        ids[start : start + longest]
        for ids in text_ids(subject.tokenizer, texts)
        for start in range(0, len(ids), longest)
    )
    return [TokenSequence(tuple(ids), answer_start=1) for ids in found if len(ids) > 1]


def has_broken(error: DivergenceError) -> str:
    """Return the note that is left where training broke down, so that the attack ends with what it had found."""
    return f"training broke down: {error}"


def _adapted(model: PreTrainedModel, what: What, *, seed: int) -> Adapted:
    if what == "weights":
        return train_weights(model, modules=(), layers=None)
    rank = min(RANK, int(model.config.get_text_config().hidden_size))
    return attach_lora(model, LoraSettings(rank, ALPHA, (ALL_LINEAR,), init="kaiming"), seed=seed)
