"""Membership: does the loss tell forget rows from rows that were never seen?

Five scores of one forward pass, each higher for what looks trained on: the mean log-probability of an answer token
(Yeom et al. 2018, arXiv 1709.01604); the same over the bits that zlib needs (Carlini et al. 2021, arXiv 2012.07805);
the mean over the least likely fifth of the tokens, Min-K (Shi et al. 2024, arXiv 2310.16789); the same of
log-probabilities less their mean over the vocabulary, over their standard deviation, Min-K++ (Zhang et al. 2025,
arXiv 2404.02936); the mean log-probability less that under a model that never saw the rows (Carlini et al. 2022,
arXiv 2112.03570).

Differs from these: the tokens are those of the answer after its prompt, in the form of the rows, since unlearning
trains on those; all of a document.
"""

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from statistics import fmean

import torch
from torch import Tensor
from transformers import PreTrainedModel

from letheon.auditing.attack import Given, Separated, Separation, Subject
from letheon.data.rows import Row
from letheon.data.sequences import TokenSequence, tokenise
from letheon.evaluation.batches import StepProgress, length_batches, padded, reading
from letheon.evaluation.metrics.membership import MAX_LOGITS
from letheon.processes import shared
from letheon.progress import Progressed

SHARE = 0.2
"""Of the tokens that Min-K and Min-K++ take."""
_ROWS_AT_ONCE = 32
_UNLIMITED = 2**31


@dataclass(frozen=True, slots=True)
class TokenValues:
    """What one model makes of the answer tokens of a row."""

    log_probs: Tensor
    """(A,) float32."""
    means: Tensor
    """(A,) the mean log-probability over the vocabulary, weighted by probability: minus the entropy."""
    deviations: Tensor
    """(A,) the standard deviation of the log-probability, weighted by probability."""


def attack(subject: Subject, seen: Sequence[Row], unseen: Sequence[Row], tell: Progressed) -> dict[str, Separated]:
    """Return the five scores of forget rows and unseen rows; no ratio without a model that never saw the rows."""
    rows = [*seen, *unseen]
    sequences = [_sequence(subject, row) for row in rows]
    values = values_of(subject, subject.model, sequences, partial(tell, "reading"))
    found = {
        "loss": [mean_log_prob(one) for one in values],
        "zlib": [zlib_ratio(one, row.answer) for one, row in zip(values, rows, strict=True)],
        "min-k": [lowest_mean(one.log_probs) for one in values],
        "min-k++": [lowest_mean(standardised(one)) for one in values],
    }
    if subject.reference is not None:
        theirs = values_of(subject, subject.reference, sequences, partial(tell, "reading the reference"))
        pairs = zip(values, theirs, strict=True)
        found["ratio"] = [mean_log_prob(one) - mean_log_prob(other) for one, other in pairs]
    count = len(seen)
    return {name: Separated(tuple(of[:count]), tuple(of[count:])) for name, of in found.items()}


def values_of(
    subject: Subject, model: PreTrainedModel, sequences: Sequence[TokenSequence], progress: StepProgress
) -> list[TokenValues]:
    """Return what a model of the audit makes of each sequence's answer, read once for all attacks."""
    return subject.reads("values", model, sequences, lambda: answer_values(model, sequences, progress))


@torch.no_grad()
def answer_values(
    model: PreTrainedModel, sequences: Sequence[TokenSequence], progress: StepProgress
) -> list[TokenValues]:
    """Return what the model makes of each sequence's answer; softmax in float32."""
    with reading(model) as plain:
        lengths = [len(sequence.input_ids) for sequence in sequences]
        most = max(1, MAX_LOGITS // (4 * int(plain.config.get_text_config().vocab_size)))

        def values_of_batch(batch: Sequence[int]) -> list[TokenValues]:
            ids, _ = padded([sequences[i].input_ids for i in batch], side="right", device=plain.device)
            logits = plain(input_ids=ids, use_cache=False).logits
            spans = [(sequences[index].answer_start, lengths[index]) for index in batch]
            return [
                token_values(logits[place, start - 1 : end - 1], ids[place, start:end])
                for place, (start, end) in enumerate(spans)
            ]

        batches = length_batches(lengths, max_rows=_ROWS_AT_ONCE, max_tokens=most)
        values = shared(batches, values_of_batch, counts=list(map(len, batches)), progress=progress)
        found = dict(zip(chain(*batches), chain(*values), strict=True))
    return [found[index] for index in range(len(sequences))]


def token_values(logits: Tensor, labels: Tensor) -> TokenValues:
    """Return the values of labels (A,) under logits (A, V)."""
    log_probs = logits.float().log_softmax(-1)
    probs = log_probs.exp()
    means = (probs * log_probs).sum(-1)
    variances = (probs * log_probs.square()).sum(-1) - means.square()
    chosen = log_probs.gather(-1, labels[:, None])[:, 0]
    return TokenValues(chosen.cpu(), means.cpu(), variances.clamp_min(0).sqrt().cpu())


def mean_log_prob(values: TokenValues) -> float:
    """Return the mean log-probability of an answer token, nats."""
    return float(values.log_probs.double().mean())


def zlib_ratio(values: TokenValues, answer: str) -> float:
    """Return the log-probability of the answer, nats, over the bits that zlib compresses its text to."""
    return float(values.log_probs.double().sum()) / (8 * len(zlib.compress(answer.encode())))


def standardised(values: TokenValues) -> Tensor:
    """Return (A,) log-probabilities less their mean, over their deviation; one without deviation counts as the mean."""
    safe = values.deviations.clamp_min(1e-6)
    return (values.log_probs - values.means) / safe


def lowest_mean(values: Tensor) -> float:
    """Return the mean over the lowest `SHARE` of values (A,), at least one."""
    count = max(1, math.floor(SHARE * len(values)))
    return fmean(values.double().sort().values[:count].tolist())


def _sequence(subject: Subject, row: Row) -> TokenSequence:
    form = subject.form
    found = tokenise(row, subject.tokenizer, template=form.template, date=form.date, max_length=_UNLIMITED)
    return TokenSequence(found.input_ids, 1) if row.is_document else found


def _needs(given: Given) -> str | None:
    if given.has_holdout or given.has_never:
        return None
    return (
        "made-up rows differ from the forget rows by more than whether they were seen; give rows that no model saw and "
        "that were drawn as the forget rows were by --holdout, or a model that never saw the forget rows by --never"
    )


ATTACKS = (
    Separation(
        "membership",
        "Membership",
        "Yeom et al. 2018; Carlini et al. 2021; Shi et al. 2024; Zhang et al. 2025; Carlini et al. 2022",
        attack,
        needs=_needs,
    ),
)
