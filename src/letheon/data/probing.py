"""Which form a model knows rows in: a few rows are read in every form, and forms that are far behind are given up.

Reading is handed in, so that a run asks its engine and an evaluation the model alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from letheon.data.forms import forms_to_try
from letheon.data.rows import Row
from letheon.data.sequences import TokenSequence, tokenise_all
from letheon.errors import DataError
from letheon.settings import DEFAULT_DATE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROUNDS = (4, 4, 8)
"""Rows that each round adds to the sample."""
BEHIND = 5.0
"""Nats an answer by which a form may be behind the best and still be tried on."""
_UNLIMITED = 10**9
KNOWN_RECALL = 0.1
"""Recall below which a model does not know rows: what it does not recall it cannot be shown to forget."""


@dataclass(frozen=True, slots=True)
class AnswerValues:
    """What a model makes of each of a list of sequences."""

    recalls: tuple[float, ...]
    """The share of the answer that greedy decoding gives before it departs from it."""
    losses: tuple[float, ...]
    """The summed cross-entropy of the answer, nats."""
    num_tokens: tuple[int, ...]
    """The tokens of the answer."""
    matches: tuple[float, ...] = ()
    """The share of the answer's tokens that are the likeliest after those before them in the answer; empty where that
    was not measured."""
    repetitions: tuple[float | None, ...] = ()
    """By how much more the tokens that greedy decoding gives after the true ones repeat themselves than the true ones
    do (seq-rep-2, -1 to 1); None for a short answer. Empty where that was not looked at."""


Read = Callable[[Sequence[TokenSequence]], AnswerValues]
"""Returns what the model makes of sequences."""


@dataclass(frozen=True, slots=True)
class Known:
    """How well a model knows a sample of rows in one form."""

    loss: float
    """Cross-entropy of an answer token, nats."""
    answer_loss: float
    """Cross-entropy of a whole answer, mean over the rows, nats: what forms are compared by, since it does not depend
    on how many tokens an answer takes in each."""
    recall: float
    """Mean share of the answer that greedy decoding gives, 0 to 1."""
    num_rows: int
    """How many rows were read; fewer where the form was given up."""


def probe_forms(
    rows: Sequence[Row],
    tokenizer: "PreTrainedTokenizerBase",
    read: Read,
    *,
    max_length: int,
    date: str = DEFAULT_DATE,
    longest_prompt: int | None = None,
) -> dict[str, Known]:
    """Return how well the model knows `rows` in each form that can be tried, best first.

    At most 16 rows are read, spread over `rows` and at most one in thirty of them, but never fewer than four. Of forms
    that give the same tokens one is read. A form in which a sampled row is too long is left out, unless all are; with
    `longest_prompt`, below `max_length`, such a row is cut to the end of its prompt and the beginning of its answer.

    Raises:
        DataError: in every form a sampled row is too long or cannot be rendered.
    """
    sample = _spread(rows, min(sum(ROUNDS), max(ROUNDS[0], len(rows) // 30)))
    encoded = _encoded(sample, tokenizer, max_length=max_length, date=date, longest_prompt=longest_prompt)
    found = {name: _Reading() for name in encoded}
    first = 0
    for size in ROUNDS:
        part = slice(first, first + size)
        still = _close_to_best(found)
        if first >= len(sample) or (first and len(still) == 1):
            break
        read_already: dict[tuple[tuple[int, ...], ...], AnswerValues] = {}
        for name in still:
            sequences = encoded[name][part]
            key = tuple(sequence.input_ids for sequence in sequences)
            if key not in read_already:
                read_already[key] = read(sequences)
            found[name].add(read_already[key])
        first += size
    known = {name: reading.known() for name, reading in found.items()}
    # Of equals the first to be tried stays first: sorting is stable.
    return dict(sorted(known.items(), key=lambda item: (-item[1].num_rows, item[1].answer_loss)))


def describe_known(known: Mapping[str, Known]) -> str:
    """Say how well each form is known, e.g. "joined 0.02 nats a token, recall 0.98; pair 4.13, 0.00"."""
    parts = [f"{name} {one.loss:.2f}, {one.recall:.2f}" for name, one in known.items()]
    return f"nats a token, recall: {'; '.join(parts)}"


def unknown_sides(forget_recall: float, retain_recall: float) -> list[str]:
    """Name the rows, "forget" and "retain", of which a model recalls less than `KNOWN_RECALL`."""
    return [side for side, recall in (("forget", forget_recall), ("retain", retain_recall)) if recall < KNOWN_RECALL]


class _Reading:
    """What has been read in one form so far."""

    def __init__(self) -> None:
        self.recalls: list[float] = []
        self.losses: list[float] = []
        self.num_tokens: list[int] = []

    def add(self, values: AnswerValues) -> None:
        self.recalls += values.recalls
        self.losses += values.losses
        self.num_tokens += values.num_tokens

    def known(self) -> Known:
        return Known(
            loss=sum(self.losses) / sum(self.num_tokens),
            answer_loss=fmean(self.losses),
            recall=fmean(self.recalls),
            num_rows=len(self.losses),
        )


def _close_to_best(found: Mapping[str, _Reading]) -> list[str]:
    most = max(len(reading.losses) for reading in found.values())
    if not most:
        return list(found)
    losses = {name: fmean(reading.losses) for name, reading in found.items() if len(reading.losses) == most}
    return [name for name, loss in losses.items() if loss <= min(losses.values()) + BEHIND]


def _encoded(
    sample: Sequence[Row],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    max_length: int,
    date: str,
    longest_prompt: int | None,
) -> dict[str, list[TokenSequence]]:
    encoded: dict[str, list[TokenSequence]] = {}
    failure: DataError | None = None
    for name in forms_to_try(tokenizer):
        try:
            longest = max_length if longest_prompt is None else _UNLIMITED
            found = tokenise_all(sample, tokenizer, template=name, max_length=longest, date=date)
            is_over = [len(sequence.input_ids) > max_length for sequence in found]
            encoded[name] = [
                s.cut(max_length, longest_prompt=longest_prompt) if over else s
                for s, over in zip(found, is_over, strict=True)
            ]
        except DataError as error:  # a longer form may not fit where a shorter one does
            failure = failure or error
    if failure is not None and not encoded:
        raise failure
    return encoded


def _spread(rows: Sequence[Row], num: int) -> list[Row]:
    """Return `num` rows spread evenly, in an order in which the first few are spread too."""
    num = min(num, len(rows))
    chosen = [rows[i * len(rows) // num] for i in range(num)]
    stride = max(1, num // ROUNDS[0])
    return [chosen[i] for first in range(stride) for i in range(first, num, stride)]
