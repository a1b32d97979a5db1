"""Which of four letters a model finds likeliest after a question, by the likelihood of each as a continuation.

As lm-evaluation-harness scores multiple choice: a letter is the tokens that " A" adds to the prompt, and of a prompt
that is too long the beginning is cut off. Where each letter is one token, one pass gives all four.
"""

from collections.abc import Sequence

from letheon.evaluation.batches import token_ids
from letheon.evaluation.metrics.likelihood import AskedAnswers, likelihoods
from letheon.evaluation.metrics.mmlu import LETTERS, Prompt, letter_probabilities
from letheon.evaluation.suite import Target
from letheon.evaluation.templates import LabelledSequence
from letheon.model.loading import context_length

NO_CONTEXT = 2048
"""Tokens that a prompt may have where the model names no limit."""


def likeliest_letters(target: Target, texts: Sequence[str]) -> list[int]:
    """Return for each prompt which letter is likeliest, from 0; of equal ones the first. No prompts give none."""
    if not texts:
        return []
    longest = context_length(target.model.config) or NO_CONTEXT
    rows = token_ids(target.tokenizer, texts)
    letters = [token_ids(target.tokenizer, [f"{texts[0]} {letter}"])[0][len(rows[0]) :] for letter in LETTERS]
    if any(len(tokens) != 1 for tokens in letters):
        return _by_whole_letters(target, texts, rows, longest)
    probabilities = letter_probabilities(
        target.model,
        [Prompt(tuple(row[-longest:]), 0) for row in rows],
        [token for (token,) in letters],
        batch_size=target.batch_size,
        exact=target.exact,
    )
    chosen: list[int] = probabilities.argmax(dim=1).tolist()
    return chosen


def _by_whole_letters(target: Target, texts: Sequence[str], rows: Sequence[list[int]], longest: int) -> list[int]:
    """Choose where a letter has several tokens, the log-probabilities of which are summed."""
    asked = []
    for text, row in zip(texts, rows, strict=True):
        wholes = token_ids(target.tokenizer, [f"{text} {letter}" for letter in LETTERS])
        asked.append(AskedAnswers(tuple(_cut(whole, len(row), longest) for whole in wholes)))
    tokenizer = target.tokenizer
    hidden = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    found = likelihoods(
        target.model,
        asked,
        padding=None if hidden is None else int(hidden),
        batch_size=target.batch_size,
        exact=target.exact,
    )
    sums = [
        [one.loss * len(sequence.labels) for one, sequence in zip(answers, question.sequences, strict=True)]
        for answers, question in zip(found, asked, strict=True)
    ]
    return [losses.index(min(losses)) for losses in sums]


def _cut(whole: list[int], start: int, longest: int) -> LabelledSequence:
    first = max(0, len(whole) - 1 - longest)
    return LabelledSequence(tuple(whole[first:]), start - first)
