"""How fluent answers are: how much they repeat, whether they end, and what the model before would make of them.

Forgetting that leaves "K K K K" is forgetting that shows. Recall, ROUGE and exact match do not see it; these do,
for forget and retain rows beside each other. Tokens are whatever can be compared: token ids or words.
"""

import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Generic, TypeVar

from letheon.scores.fluency import LOSS_BEFORE, Fluencies
from letheon.scores.predictions import Prediction

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TokenT_co = TypeVar("TokenT_co", bound=Hashable, covariant=True)

LARGEST_N = 4
FEWEST_TOKENS = 8
"""An answer of fewer tokens is too short to be called degenerate by its repetitions."""
DEGENERATE = 0.5
"""Share of repeated 2-grams from which an answer is degenerate."""
LONGEST_WORD = 24
"""A word of more characters is taken as characters: scripts without spaces, and letters stuck together."""
UNCUT_TOKENS = 24
"""New tokens that an answer gets before it is left early, where it is to show how fluent it is."""
NUM_UNCUT = 16
"""How many of the answers to a set of rows these are."""


@dataclass(frozen=True, slots=True)
class Said(Generic[TokenT_co]):
    """One answer as it was generated."""

    tokens: Sequence[TokenT_co]
    """The new tokens without the end of sequence: token ids, or words."""
    has_ended: bool | None = None
    """Whether it ended by itself before the limit; None where that is not known (it was cut)."""


@dataclass(frozen=True, slots=True)
class Fluency:
    """Means over answers; a value is None where no answer has it."""

    distinct: Mapping[int, float | None]
    """For n of 1 to 4, distinct n-grams over all n-grams of all answers, 0 to 1; higher is more varied."""
    repetition: Mapping[int, float | None]
    """For n of 1 to 4, the mean of seq-rep-n, 0 to 1; lower is better."""
    ended: float | None
    """Share of the answers that end by themselves, 0 to 1."""
    empty: float | None
    """Share of the answers without a token, 0 to 1."""
    degenerate: float | None
    """Share of the answers that repeat themselves (`is_degenerate`), 0 to 1."""
    loss_before: float | None
    """Mean over answers of the mean cross-entropy of their tokens under the model before, nats; None without it."""

    def flat(self) -> dict[str, float | None]:
        """Return the numbers by name."""
        return {
            **{f"distinct_{n}": value for n, value in self.distinct.items()},
            **{f"repetition_{n}": value for n, value in self.repetition.items()},
            "ended": self.ended,
            "empty": self.empty,
            "degenerate": self.degenerate,
            "loss_before": self.loss_before,
        }


def fluency(answers: Sequence[Said[Hashable]], *, losses_before: Sequence[float | None] = ()) -> Fluency:
    """Return how fluent `answers` are; `losses_before` is `answer_losses` of them under the model before."""
    tokens = [answer.tokens for answer in answers]
    sizes = range(1, LARGEST_N + 1)
    return Fluency(
        distinct={n: distinct(tokens, n) for n in sizes},
        repetition={n: _mean([repetition(one, n) for one in tokens]) for n in sizes},
        ended=_mean([None if answer.has_ended is None else float(answer.has_ended) for answer in answers]),
        empty=_mean([float(not one) for one in tokens]),
        degenerate=_mean([float(is_degenerate(one)) for one in tokens]),
        loss_before=_mean(losses_before),
    )


def distinct(answers: Sequence[Sequence[Hashable]], n: int) -> float | None:
    """Return distinct n-grams / n-grams over all answers (after Li et al. 2016, arXiv 1510.03055); None of none.

    Differs from the paper, which divides by the number of tokens.
    """
    grams = [gram for answer in answers for gram in _grams(answer, n)]
    return len(set(grams)) / len(grams) if grams else None


def repetition(answer: Sequence[Hashable], n: int) -> float | None:
    """Return seq-rep-n = 1 - distinct n-grams / n-grams of one answer (Welleck et al. 2020, arXiv 1908.04319, Eq. 9).

    0 where no n-gram comes twice, towards 1 where one comes again and again; None for fewer than n tokens.
    """
    share = distinct([answer], n)
    return None if share is None else 1 - share


def is_degenerate(answer: Sequence[Hashable]) -> bool:
    """Return whether an answer of at least `FEWEST_TOKENS` tokens repeats half of its 2-grams or more."""
    repeated = repetition(answer, 2)
    return len(answer) >= FEWEST_TOKENS and repeated is not None and repeated >= DEGENERATE


def answer_fluency(
    predictions: Sequence[Prediction], *, losses_before: Mapping[str, float | None] | None = None
) -> Fluencies:
    """Return how fluent the answers to each set of rows are, over words; a set of which nothing is known is left out.

    Answers that were left early are passed over unless they are long enough to show that they repeat themselves.
    `losses_before` has for each set the mean loss of its answers under the model before, nats a token.
    """
    found: dict[str, Mapping[str, float | None]] = {}
    for side in dict.fromkeys(one.split for one in predictions):
        said = [(words(one.generation), one) for one in predictions if one.split == side]
        told = [Said(text, one.has_ended) for text, one in said if not one.is_cut or len(text) >= FEWEST_TOKENS]
        if told:
            found[side] = {**fluency(told).flat(), LOSS_BEFORE: (losses_before or {}).get(side)}
    return found


def uncut_tokens(splits: Sequence[str]) -> list[int]:
    """Return how many new tokens each answer gets before it is left early: `UNCUT_TOKENS` for some of each set.

    `splits` names the set of each answer; `NUM_UNCUT` of a set, evenly drawn, are to show how fluent they are.
    """
    found = [1] * len(splits)
    for side in dict.fromkeys(splits):
        places = [place for place, split in enumerate(splits) if split == side]
        for place in places[:: -(-len(places) // NUM_UNCUT)]:
            found[place] = UNCUT_TOKENS
    return found


def words(text: str) -> list[str]:
    """Return the words and punctuation marks of a text; a word above `LONGEST_WORD` characters as its characters."""
    found = re.findall(r"\w+|[^\w\s]", text)
    return [part for word in found for part in ([word] if len(word) <= LONGEST_WORD else word)]


def answer_losses(
    model: "PreTrainedModel", prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]
) -> list[float | None]:
    """Return the mean cross-entropy, nats a token, of each answer after its prompt; None of an empty answer.

    `prompts` and `answers` are token ids; a prompt has at least one. `model` is the model before, so that text which it
    would never write costs much.
    """
    return [
        _answer_loss(model, prompt, answer) if answer else None for prompt, answer in zip(prompts, answers, strict=True)
    ]


def _answer_loss(model: "PreTrainedModel", prompt: Sequence[int], answer: Sequence[int]) -> float:
    import torch  # here, so that predictions are scored again without it
    from torch.nn.functional import cross_entropy

    from letheon.evaluation.batches import reading

    ids = torch.tensor([[*prompt, *answer]], device=model.device)
    with reading(model) as plain_model:
        logits = plain_model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
    return float(cross_entropy(logits.float(), ids[0, len(prompt) :]))


def _grams(answer: Sequence[Hashable], n: int) -> Iterator[tuple[Hashable, ...]]:
    return (tuple(answer[start : start + n]) for start in range(len(answer) - n + 1))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
