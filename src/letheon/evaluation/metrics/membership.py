"""Loss-based membership attack: does the model still tell documents it was trained on from others?"""

from collections.abc import Sequence
from itertools import pairwise
from math import isfinite, sqrt
from statistics import fmean

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from letheon.data.rows import Row
from letheon.engine.patches.rotation import changes_rotation
from letheon.errors import EvaluationError
from letheon.evaluation.batches import StepProgress, length_batches, padded, position_limit, reading, token_ids
from letheon.evaluation.metrics.found import MembershipScores
from letheon.processes import shared
from letheon.scores.numbers import membership_score

MAX_LOGITS = 2**27
"""Logits that one batch may hold, B x T x V: 0.5 GiB in float32."""

POSITIONS_AT_ONCE = 512
"""Positions whose logits are turned to float32 at once."""

MIN_TELLING_LENGTH = 40
"""Characters below which a row found in a document proves nothing."""

_NORMAL_QUANTILE = 1.959963984540054  # of 0.975


def check_members(members: Sequence[str], retain: Sequence[Row]) -> None:
    """Refuse member documents that hold a text to be retained.

    An older release of the task's documents counts retain rows among the members; its AUC means something else.

    Raises:
        EvaluationError: a member document contains the prompt and the answer of a retain row.
    """
    kept = [(row.id, row.prompt.strip(), row.answer.strip()) for row in retain if row.kind == "completion"]
    for number, document in enumerate(members, 1):
        for row_id, prompt, answer in kept:
            if len(prompt) + len(answer) >= MIN_TELLING_LENGTH and prompt in document and answer in document:
                raise EvaluationError(
                    f"member document {number} contains retain row {row_id}, but members must come from the rows to "
                    "forget; is it the older release (250 + 250 documents)? Give the one whose members are forget rows"
                )


def document_losses(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[str],
    *,
    batch_size: int = 32,
    exact: bool = False,
    progress: StepProgress | None = None,
) -> list[float]:
    """Return the mean token cross-entropy of each document, in nats.

    loss = -1/(T - 1) sum_{t=2..T} log p(x_t | x_<t) over the whole raw text, tokenised with the tokenizer's defaults
    and never truncated, as in the official script; softmax in float32. Documents of like length share a right-padded
    batch (no position sees one to its right, so padding changes nothing but rounding); `exact` takes them one by one.

    Raises:
        EvaluationError: a document has fewer than two tokens or does not fit the model's position table.
    """
    rows = token_ids(tokenizer, documents)
    losses = [0.0] * len(rows)
    with reading(model) as plain_model:
        _check_lengths(rows, position_limit(plain_model))
        max_tokens = max(1, MAX_LOGITS // plain_model.config.get_text_config().vocab_size)
        lengths = [len(row) for row in rows]
        exact = exact or changes_rotation(plain_model.config, lengths)

        def losses_of(batch: list[int]) -> list[float]:
            return list(_batch_losses(plain_model, [rows[i] for i in batch]))

        batches = length_batches(lengths, max_rows=1 if exact else batch_size, max_tokens=max_tokens)
        losses_found = shared(batches, losses_of, counts=list(map(len, batches)), progress=progress)
        for batch, found in zip(batches, losses_found, strict=True):
            for index, loss in zip(batch, found, strict=True):
                losses[index] = loss
    return losses


def membership_scores(member_losses: Sequence[float], nonmember_losses: Sequence[float]) -> MembershipScores:
    """Return AUC of -loss with members = 1, its DeLong interval, and the score 1 - 2 |AUC - 0.5| (1 is best).

    Raises:
        EvaluationError: a set has fewer than two documents, or a loss is not a finite number.
    """
    from sklearn.metrics import roc_auc_score  # not with the module: most evaluations do without its long import

    _check_losses(member_losses, "member")
    _check_losses(nonmember_losses, "non-member")
    labels = [1] * len(member_losses) + [0] * len(nonmember_losses)
    auc = float(roc_auc_score(labels, [-loss for loss in (*member_losses, *nonmember_losses)]))
    interval = delong_interval(member_losses, nonmember_losses)
    return MembershipScores(
        auc=auc,
        auc_interval=interval,
        score=membership_score(auc),
        score_interval=_score_range(interval),
        mean_member_loss=fmean(member_losses),
        mean_nonmember_loss=fmean(nonmember_losses),
        num_members=len(member_losses),
        num_nonmembers=len(nonmember_losses),
    )


def delong_interval(member_losses: Sequence[float], nonmember_losses: Sequence[float]) -> tuple[float, float]:
    """Return the 95% interval of the AUC of -loss (DeLong et al. 1988), cut to [0, 1].

    With psi = 1, 1/2 or 0 as a member's loss is below, at or above a non-member's, the variance is
    S10 / m + S01 / n, where S10 is the sample variance over the m members of their mean psi, S01 that over the n
    non-members. A perfect separation has variance 0 and an interval of no width. Needs m, n >= 2.
    """
    members = np.asarray(member_losses, dtype=np.float64)[:, None]
    others = np.asarray(nonmember_losses, dtype=np.float64)[None, :]
    psi = (members < others) + 0.5 * (members == others)
    error = sqrt(_variance_of_mean(psi.mean(axis=1)) + _variance_of_mean(psi.mean(axis=0)))
    auc = float(psi.mean())
    return max(0.0, auc - _NORMAL_QUANTILE * error), min(1.0, auc + _NORMAL_QUANTILE * error)


def _check_lengths(rows: Sequence[Sequence[int]], limit: int | None) -> None:
    for number, row in enumerate(rows, 1):
        if len(row) < 2:
            raise EvaluationError(
                f"document {number} has {len(row)} token, but a loss needs at least two; leave it out of the file"
            )
        if limit is not None and len(row) > limit:
            raise EvaluationError(
                f"document {number} has {len(row)} tokens, but the model's position table ends at {limit}; "
                "leave it out, or evaluate a model with a longer context"
            )


def _batch_losses(model: PreTrainedModel, rows: Sequence[Sequence[int]]) -> list[float]:
    input_ids, _ = padded(rows, side="right", device=model.device)
    logits = model(input_ids=input_ids, use_cache=False).logits
    return [_mean_loss(logits[i, : len(row) - 1], input_ids[i, 1 : len(row)]) for i, row in enumerate(rows)]


def _mean_loss(logits: Tensor, labels: Tensor) -> float:
    """Mean cross-entropy of labels (T - 1,) under logits (T - 1, V)."""
    edges = [*range(0, len(labels), POSITIONS_AT_ONCE), len(labels)]
    parts = [cross_entropy(logits[a:b].float(), labels[a:b], reduction="none") for a, b in pairwise(edges)]
    return float(torch.cat(parts).mean())


def _check_losses(losses: Sequence[float], which: str) -> None:
    if len(losses) < 2:
        raise EvaluationError(f"the AUC and its interval need at least two {which} documents, got {len(losses)}")
    bad = [number for number, loss in enumerate(losses, 1) if not isfinite(loss)]
    if bad:
        raise EvaluationError(
            f"the loss of {which} document {bad[0]} is not finite ({len(bad)} of {len(losses)}): the model is broken"
        )


def _variance_of_mean(values: NDArray[np.float64]) -> float:
    return float(values.var(ddof=1)) / len(values)


def _score_range(interval: tuple[float, float]) -> tuple[float, float]:
    ends = sorted(membership_score(auc) for auc in interval)
    return ends[0], 1.0 if interval[0] <= 0.5 <= interval[1] else ends[1]
