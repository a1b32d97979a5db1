"""A cheap score of a run while it lasts: how far greedy decoding would follow each answer.

One gradient-free pass over the rows stands in for generation. Greedy decoding gives an answer up to the first token
that is not the likeliest one; the share of the answer before it is its recall. A question counts as known if that is
all of it, as in exact match; a completion counts by its recall, a stand-in for ROUGE-L. The score is the harmonic mean
over tasks and kinds of 1 - recall on forget rows and recall on retain rows, as the official task aggregate is.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from statistics import fmean, harmonic_mean
from typing import TypeVar

import torch
from torch import Tensor

from letheon.data.packing import PASS_TOKENS, PackedBatch, pack, token_groups
from letheon.data.probing import AnswerValues
from letheon.data.rows import Row
from letheon.data.sequences import Asked, TokenSequence
from letheon.engine.engine import Engine
from letheon.engine.values import ReferenceStore, token_values
from letheon.evaluation.fluency import FEWEST_TOKENS, repetition
from letheon.objective.values import Needs
from letheon.processes import shared
from letheon.progress import Progressed
from letheon.scores.numbers import membership_score
from letheon.training.judge import SCORE, Better, StateScore

Value = TypeVar("Value")

BETTER: Mapping[str, Better] = {
    "forget_recall": "lower",
    "forget_match": "lower",
    "retain_recall": "higher",
    SCORE: "higher",
    "retain_loss": "lower",
    "membership": "higher",
    "membership_auc": "lower",
    "text_loss": "lower",
    "retain_kl": "lower",
    "general_kl": "lower",
    "forget_repetition": "lower",
    "instead_recall": "higher",
}
"""What is measured of a state, and in which direction it is better.

forget_match: mean over the forget rows of the share of the answer's tokens that are the likeliest after those before
    them in the answer (exact memorisation, Tirumala et al., arXiv 2205.10770), 0 to 1. A text of which greedy decoding
    misses an early token has a recall near 0 and can still match: what is left of it is only hidden.
forget_recall, retain_recall, score: 0 to 1. The score, which the best state is chosen by, is the harmonic mean of the
    recalls by task and kind, or where there are holdout documents the mean of that and `membership`.
retain_loss: mean cross-entropy of a retain answer token, nats.
membership: 1 - 2 |AUC - 0.5| of telling forget texts from holdout documents by their loss; None without the latter.
membership_auc: that AUC. Where it is above 0.5, forget texts still cost less than documents that the model never saw;
    below, scaling what was trained brings it back. None also where a loss is not finite.
text_loss: mean over the holdout documents of their cross-entropy, nats a token; None without them.
retain_kl: mean of KL(reference || model), nats, where it is taken on the retain rows; None where nothing waits on it.
general_kl: mean of KL(reference || model) over general text that is not trained on, nats; None without such text.
forget_repetition: by how much more the likeliest tokens at the forget answers repeat themselves than the true ones,
    mean of seq-rep-2, -1 to 1. It costs nothing, and rises before what the model writes by itself becomes "K K K K".
    None where all answers are short, or the values are those of a store.
instead_recall: mean recall of the other answer that each forget row is taught by --instead; None where rows have none,
    or several, of which the model may say any.
"""


@dataclass(frozen=True, slots=True)
class KeptRows:
    """Retain or general rows in the form in which the KL is taken on them, and the reference's values there."""

    sequences: Sequence[TokenSequence]
    reference: ReferenceStore


@dataclass(frozen=True, slots=True)
class Probes:
    """What interim scores look at, fixed for a run; rows are numbered forget rows first."""

    rows: Sequence[Row]
    answers: Sequence[TokenSequence]
    """The rows with their answers marked."""
    num_forget_rows: int
    holdout: Sequence[TokenSequence] = ()
    """Whole documents that the model never saw."""
    asked: Mapping[int, Asked] = field(default_factory=dict)
    """How rows are asked with the bare generation prompt, by their number, where that is another way."""
    holdout_task: str | None = None
    """The task whose forget rows these resemble; None for all."""
    kept: KeptRows | None = None
    """The retain rows, where the KL on them is asked for."""
    general: KeptRows | None = None
    """General text that is not trained on."""
    others: Sequence[TokenSequence] = ()
    """Forget rows with the one other answer that each is taught, where there is one."""

    @property
    def num_tokens(self) -> int:
        """How many tokens a scoring reads, as an upper bound."""
        asked = (one for pair in self.asked.values() for one in (pair.at_once, pair.written))
        held = [s for rows in (self.kept, self.general) if rows for s in rows.sequences]
        texts = self.forget_texts if self.holdout else ()
        read = (self.answers, self.holdout, texts, asked, held, self.others)
        return sum(len(s.input_ids) for sequences in read for s in sequences)

    @property
    def forget_texts(self) -> list[TokenSequence]:
        """The completions to forget that the holdout documents resemble, prompt and answer (else the questions)."""
        rows = list(zip(self.rows, self.answers, strict=True))[: self.num_forget_rows]
        forget = [(row, answer) for row, answer in rows if self.holdout_task in (None, row.task)]
        chosen = [answer for row, answer in forget if row.kind == "completion"] or [answer for _, answer in forget]
        return [replace(answer, answer_start=1) for answer in chosen]


def interim_score(
    engine: Engine,
    probes: Probes,
    *,
    step: int,
    epoch: float,
    answers: AnswerValues | None = None,
    progress: Progressed | None = None,
) -> StateScore:
    """Score the engine's present state, giving `BETTER`; no random number is drawn.

    `answers` is what it makes of the probes' answers, where that is known; `progress` hears of the rows that are done.
    """
    cells: dict[tuple[bool, str, str], list[float]] = defaultdict(list)
    found = answers or answer_values(engine, probes.answers, progress=progress)
    recalls = _worse_recalls(engine, probes, found.recalls)
    for index, (row, recall) in enumerate(zip(probes.rows, recalls, strict=True)):
        known = float(recall == 1) if row.kind == "question" else recall
        cells[index < probes.num_forget_rows, row.task, row.kind].append(known)
    means = {cell: fmean(values) for cell, values in cells.items()}
    aggregate = harmonic_mean([1 - mean if cell[0] else mean for cell, mean in means.items()])
    of_holdout = text_losses(engine, probes.holdout)
    auc = membership_auc(text_losses(engine, probes.forget_texts), of_holdout) if of_holdout else None
    membership = membership_score_of(auc) if of_holdout else None
    retained = probes.num_forget_rows
    values = {
        "forget_recall": fmean(v for (is_forget, *_), values in cells.items() if is_forget for v in values),
        "forget_match": fmean(found.matches[:retained]) if found.matches else None,
        "retain_recall": fmean(v for (is_forget, *_), values in cells.items() if not is_forget for v in values),
        SCORE: aggregate if membership is None else (aggregate + membership) / 2,
        "retain_loss": sum(found.losses[retained:]) / sum(found.num_tokens[retained:]),
        "membership": membership,
        "membership_auc": auc,
        "text_loss": fmean(of_holdout) if of_holdout else None,
        "retain_kl": None if probes.kept is None else mean_divergence(engine, probes.kept),
        "general_kl": None if probes.general is None else mean_divergence(engine, probes.general),
        "forget_repetition": _mean(found.repetitions[:retained]),
        "instead_recall": fmean(answer_values(engine, probes.others).recalls) if probes.others else None,
    }
    return StateScore(step, epoch, values)


def stored_answers(store: ReferenceStore, trained: Sequence[TokenSequence], probes: Probes) -> AnswerValues | None:
    """Return what the reference makes of the probes' answers, from its store; None where these are not what is trained.

    `trained` are the sequences of the store, row after row.
    """
    same = all(
        (one.input_ids, one.answer_start, one.padding) == (two.input_ids, two.answer_start, None)
        for one, two in zip(trained, probes.answers, strict=False)
    )
    if store.is_likeliest is None or not same or len(trained) < len(probes.answers):
        return None
    lengths = [sequence.num_answer_tokens for sequence in probes.answers]
    num_tokens = sum(lengths)
    hits, log_probs = store.is_likeliest[:num_tokens].split(lengths), store.log_probs[:num_tokens].split(lengths)
    return AnswerValues(
        recalls=tuple(float(answer.long().cumprod(0).double().mean()) for answer in hits),
        losses=tuple(-float(answer.double().sum()) for answer in log_probs),
        num_tokens=tuple(lengths),
        matches=tuple(float(answer.double().mean()) for answer in hits),
    )


def _worse_recalls(engine: Engine, probes: Probes, recalls: Sequence[float]) -> list[float]:
    """Return the recall of each row in the way of asking that speaks against the state: the larger of a forget row's.

    Asked with the bare generation prompt, the model may give the answer at once or first write what the template would.
    """
    worse = list(recalls)
    if not probes.asked:
        return worse
    at_once = answer_values(engine, [asked.at_once for asked in probes.asked.values()]).recalls
    written = answer_values(engine, [asked.written for asked in probes.asked.values()]).recalls
    for (index, asked), first, second in zip(probes.asked.items(), at_once, written, strict=True):
        num_answer = probes.answers[index].num_answer_tokens
        num_written = asked.written.num_answer_tokens
        num_said = max(0, round(second * num_written) - (num_written - num_answer))
        bare = max(first, num_said / num_answer)
        worse[index] = max(worse[index], bare) if index < probes.num_forget_rows else min(worse[index], bare)
    return worse


def membership_score_of(auc: float | None) -> float:
    """Return 1 - 2 |AUC - 0.5|; 0 for None: a broken model is not one that hides its members."""
    return 0.0 if auc is None else membership_score(auc)


def membership_auc(member_losses: Sequence[float], other_losses: Sequence[float]) -> float | None:
    """Return the AUC of telling members from others by their lower loss; None where a loss is not finite."""
    from sklearn.metrics import roc_auc_score  # not with the module: it takes longer to import than a small run's steps

    if not all(math.isfinite(loss) for loss in (*member_losses, *other_losses)):
        return None
    is_member = [1] * len(member_losses) + [0] * len(other_losses)
    return float(roc_auc_score(is_member, [-loss for loss in (*member_losses, *other_losses)]))


@torch.no_grad()
def text_losses(engine: Engine, sequences: Sequence[TokenSequence], *, max_tokens: int = PASS_TOKENS) -> list[float]:
    """Return the mean cross-entropy, nats a token, of each sequence's answer tokens."""

    def losses_of(batch: PackedBatch, group: list[int]) -> list[float]:
        log_probs = engine.label_values(batch).log_probs
        sums = log_probs.new_zeros(len(group)).index_add(0, batch.owner, log_probs)
        lengths = [sequences[i].num_answer_tokens for i in group]
        return [-total / length for total, length in zip(sums.tolist(), lengths, strict=True)]

    return [loss for losses in _passed(engine, sequences, max_tokens, losses_of) for loss in losses]


@torch.no_grad()
def mean_divergence(engine: Engine, kept: KeptRows, *, max_tokens: int = PASS_TOKENS) -> float:
    """Return the mean of KL(reference || policy), nats, over all scored places of the rows."""

    def divergence_of(batch: PackedBatch, _: list[int]) -> tuple[float, int]:
        kl = token_values(engine, kept.reference, batch, needs=Needs(kl="forward")).kl
        assert kl is not None
        return float(kl.double().sum()), len(kl)

    found = _passed(engine, kept.sequences, max_tokens, divergence_of)
    return sum(total for total, _ in found) / max(sum(count for _, count in found), 1)


@torch.no_grad()
def answer_values(
    engine: Engine,
    sequences: Sequence[TokenSequence],
    *,
    max_tokens: int = PASS_TOKENS,
    progress: Progressed | None = None,
) -> AnswerValues:
    """Return the values of each sequence's answer under the engine's present state."""

    def values_of(batch: PackedBatch, group: list[int]) -> list[_Answer]:
        """Return what a packed group of sequences gives."""
        lengths = [sequences[i].num_answer_tokens for i in group]
        likeliest, log_probs = engine.likeliest(batch)
        said, true = likeliest.cpu().split(lengths), batch.labels.cpu().split(lengths)
        return [
            _Answer(
                recall=float((one == other).long().cumprod(0).double().mean()),
                loss=-float(values.double().sum()),
                match=float((one == other).double().mean()),
                repetition=more_repetition(one.tolist(), other.tolist()),
            )
            for one, other, values in zip(said, true, log_probs.cpu().split(lengths), strict=True)
        ]

    shown = None if progress is None else partial(progress, "scoring")
    found = list(chain(*_passed(engine, sequences, max_tokens, values_of, progress=shown)))
    return AnswerValues(
        tuple(answer.recall for answer in found),
        tuple(answer.loss for answer in found),
        tuple(s.num_answer_tokens for s in sequences),
        matches=tuple(answer.match for answer in found),
        repetitions=tuple(answer.repetition for answer in found),
    )


@torch.no_grad()
def answer_log_probs(engine: Engine, sequences: Sequence[TokenSequence], *, max_tokens: int = PASS_TOKENS) -> Tensor:
    """Return the log-probabilities (A,) of all answer tokens under the engine's present state, row after row."""

    def log_probs_of(batch: PackedBatch, _: list[int]) -> Tensor:
        return engine.label_values(batch).log_probs.cpu()

    return torch.cat(_passed(engine, sequences, max_tokens, log_probs_of))


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a state makes of one answer; the fields are those of `AnswerValues`."""

    recall: float
    loss: float
    match: float
    repetition: float | None


def more_repetition(said: Sequence[int], true: Sequence[int]) -> float | None:
    """Return seq-rep-2 of `said` - seq-rep-2 of `true`, two lists of as many tokens; None of fewer than eight.

    seq-rep-2 = 1 - distinct 2-grams / 2-grams (Welleck et al. 2020, arXiv 1908.04319, Eq. 9).
    """
    if len(true) < FEWEST_TOKENS:
        return None
    return (repetition(said, 2) or 0.0) - (repetition(true, 2) or 0.0)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _passed(
    engine: Engine,
    sequences: Sequence[TokenSequence],
    max_tokens: int,
    compute: Callable[[PackedBatch, list[int]], Value],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> list[Value]:
    """Return what `compute` makes of each batch and the numbers of its sequences, in order, by all processes."""

    def of_group(group: list[int]) -> Value:
        batch = pack([sequences[i] for i in group], is_forget=[False] * len(group), row_index=group)
        return compute(batch.to(engine.model.device), group)

    with engine.running():
        groups = list(token_groups([len(s.input_ids) for s in sequences], max_tokens))
        return shared(groups, of_group, counts=list(map(len, groups)), progress=progress)
