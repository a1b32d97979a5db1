"""Recognisability: can a classifier of loss profiles tell forget rows from rows that were never seen?

Unlearning leaves traces: a row whose answer costs more than any unseen one, or costs it elsewhere, is known by them.
Chen et al. 2025 (arXiv 2506.14003) tell unlearned models from others so, Hayes et al. 2024 (arXiv 2403.01218) which
rows were unlearned. A profile is how the loss lies along an
answer and how it is distributed; a logistic regression over it and its squares is trained on four fifths of the rows
of both kinds and judges the others. Folds are cut by subject, so that no row is judged by one that tells of it.

Differs from the papers: the classifier sees one model's losses alone, neither its activations nor shadow models.
"""

import random
from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from letheon.auditing.attack import Given, Separated, Separation, Subject
from letheon.auditing.membership import TokenValues, standardised, values_of
from letheon.auditing.rows import subjects_of
from letheon.data.rows import Row
from letheon.data.sequences import TokenSequence, tokenise
from letheon.progress import Progressed

NUM_FOLDS = 5
FEWEST_ROWS = 10
"""Rows of either side with which a classifier can be trained and tested."""
_NUM_PARTS = 4
_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
_UNLIMITED = 2**31

Profiles = NDArray[np.float64]


def profile(values: TokenValues) -> list[float]:
    """Return what describes the losses (A,) of an answer, nats: 13 numbers, whatever its length.

    The mean and the deviation, five quantiles, the mean of each quarter of the answer in order, the mean entropy, and
    the mean of log-probabilities standardised over the vocabulary.
    """
    losses = -values.log_probs.double()
    quarters = [float(part.mean()) for part in _parts(losses)]
    quantiles = torch.quantile(losses, torch.tensor(_SHARES, dtype=torch.float64)).tolist()
    entropy, surprise = float(-values.means.double().mean()), float(standardised(values).double().mean())
    return [float(losses.mean()), float(losses.std(correction=0)), *quantiles, *quarters, entropy, surprise]


def attack(subject: Subject, seen: Sequence[Row], unseen: Sequence[Row], tell: Progressed) -> dict[str, Separated]:
    """Return how much a classifier that was trained on other rows takes each row for one of the forget rows."""
    sequences = [_sequence(subject, row) for row in (*seen, *unseen)]
    values = values_of(subject, subject.model, sequences, partial(tell, "reading"))
    profiles = np.array([profile(one) for one in values])
    count = len(seen)
    return {
        "profile": recognise(
            profiles[:count],
            profiles[count:],
            seen_groups=subjects_of(seen),
            unseen_groups=subjects_of(unseen),
            seed=subject.seed,
        )
    }


def recognise(
    seen: Profiles,
    unseen: Profiles,
    *,
    seen_groups: Sequence[Sequence[int]],
    unseen_groups: Sequence[Sequence[int]],
    seed: int,
) -> Separated:
    """Return the log-odds of (m, F) seen and (n, F) unseen profiles, each by a classifier that did not train on its
    fold.

    Groups are places of rows that stay in one fold. Both kinds weigh the same in training: otherwise a fold that lacks
    some of one kind would be judged more like it.
    """
    from sklearn.linear_model import LogisticRegression

    folds = np.array([*deal(seen_groups, len(seen), seed=seed), *deal(unseen_groups, len(unseen), seed=seed)])
    profiles, labels = np.nan_to_num(np.vstack([seen, unseen])), np.repeat([1, 0], [len(seen), len(unseen)])
    found = np.zeros(len(labels))
    for fold in np.unique(folds):
        is_judged = folds == fold
        train, judged = _features(profiles[~is_judged], profiles[is_judged])
        classifier = LogisticRegression(class_weight="balanced", max_iter=5000).fit(train, labels[~is_judged])
        found[is_judged] = classifier.decision_function(judged)
    return Separated(tuple(found[: len(seen)].tolist()), tuple(found[len(seen) :].tolist()))


def deal(groups: Sequence[Sequence[int]], num_rows: int, *, seed: int) -> list[int]:
    """Return the fold of each row: groups whole, the largest first, each to the fold that has fewest rows.

    Where there are fewer than two groups each row is one.
    """
    dealt = [list(group) for group in groups] if len(groups) > 1 else [[place] for place in range(num_rows)]
    random.Random(seed).shuffle(dealt)
    sizes, folds = [0] * min(NUM_FOLDS, len(dealt)), [0] * num_rows
    for group in sorted(dealt, key=len, reverse=True):
        fold = sizes.index(min(sizes))
        sizes[fold] += len(group)
        for place in group:
            folds[place] = fold
    return folds


def _features(train: Profiles, judged: Profiles) -> tuple[Profiles, Profiles]:
    """Profiles in deviations of the training rows, and their squares, which tell what lies outside on both sides."""
    centre, width = train.mean(0), np.maximum(train.std(0), 1e-9)
    scaled = [np.clip((part - centre) / width, -10, 10) for part in (train, judged)]
    return np.hstack([scaled[0], scaled[0] ** 2]), np.hstack([scaled[1], scaled[1] ** 2])


def _parts(losses: torch.Tensor) -> list[torch.Tensor]:
    """Quarters of (A,) losses in order; those of a short answer share tokens."""
    count = len(losses)
    edges = [place * count // _NUM_PARTS for place in range(_NUM_PARTS + 1)]
    return [losses[min(a, count - 1) : max(b, a + 1)] for a, b in pairwise(edges)]


def _sequence(subject: Subject, row: Row) -> TokenSequence:
    form = subject.form
    found = tokenise(row, subject.tokenizer, template=form.template, date=form.date, max_length=_UNLIMITED)
    return TokenSequence(found.input_ids, 1) if row.is_document else found


def _needs(given: Given) -> str | None:
    if min(len(given.rows), len(given.unseen)) < FEWEST_ROWS:
        return (
            f"a classifier needs at least {FEWEST_ROWS} rows of either side, there are {len(given.rows)} forget rows "
            f"and {len(given.unseen)} placebo rows"
        )
    if given.has_holdout or given.has_never:
        return None
    return (
        "made-up rows are recognised by what they say; give rows that no model saw and that were drawn as the forget "
        "rows were by --holdout, or a model that never saw the forget rows by --never"
    )


ATTACKS = (
    Separation(
        "recognisability",
        "Recognised by a classifier of loss profiles",
        "Chen et al. 2025, arXiv 2506.14003; Hayes et al. 2024, arXiv 2403.01218",
        attack,
        needs=_needs,
        passes=0.5,
    ),
)
