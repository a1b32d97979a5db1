"""What the dial measures of a model: interim scores, and losses of documents that it never saw."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from math import isfinite
from statistics import fmean
from typing import Any, TypeVar

from letheon.data.sequences import TokenSequence
from letheon.engine.engine import Engine
from letheon.training.judge import SCORE, StateScore
from letheon.unlearning.dial.search import Point
from letheon.unlearning.interim import Probes, interim_score, membership_auc, membership_score_of, text_losses

Unseen = TypeVar("Unseen", str, TokenSequence)
FEWEST_DOCUMENTS = 50
"""Below so many documents in a half the AUC's sampling error is above .05, which a warning says."""
MOST_DOCUMENTS = 256
"""How many documents of a half are read."""


@dataclass(frozen=True, slots=True)
class Halves:
    """Documents that the model never saw, in two halves; both are empty without such documents."""

    chosen_by: Sequence[TokenSequence] = ()
    """Whatever is chosen while a run lasts is chosen by these: the kept state and the scale."""
    reported_on: Sequence[TokenSequence] = field(default=())
    """Nothing is chosen by these, so what is measured on them says how well the choice carries over."""

    @property
    def all(self) -> list[TokenSequence]:
        """The documents of both halves."""
        return [*self.chosen_by, *self.reported_on]


def split_in_halves(documents: Sequence[Unseen]) -> tuple[Sequence[Unseen], Sequence[Unseen]]:
    """Return the first, third, fifth ... of the documents, and the others, at most `MOST_DOCUMENTS` of each."""
    return documents[0::2][:MOST_DOCUMENTS], documents[1::2][:MOST_DOCUMENTS]


@dataclass(frozen=True, slots=True)
class Reported:
    """What is measured at one scale against the documents by which nothing was chosen."""

    scale: float
    num_documents: int
    auc: float | None
    """None where a loss is not finite."""
    text_loss: float | None
    """Mean loss of these documents, nats a token; None where it is not finite."""

    def flat(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return {**asdict(self), "membership": membership_score_of(self.auc)}


def measure(
    engine: Engine,
    probes: Probes,
    documents: Sequence[TokenSequence],
    *,
    scale: float,
    known: StateScore | None = None,
) -> Point:
    """Score the engine's present state, which is that of `scale`, against the documents to choose by.

    The values are those of `interim_score`, with these documents as the holdout. `known` is what it gave before for
    this state, with any documents.
    """
    found = _without_documents(known) if known else interim_score(engine, replace(probes, holdout=()), step=0, epoch=0)
    if not documents:
        return Point(scale, found.values)
    members, losses = text_losses(engine, probes.forget_texts), text_losses(engine, documents)
    auc = membership_auc(members, losses)
    membership = membership_score_of(auc)
    values = {
        **found.values,
        SCORE: (found.score + membership) / 2,
        "membership": membership,
        "membership_auc": auc,
        "text_loss": fmean(losses),
    }
    return Point(scale, values, auc, tuple(members))


def _without_documents(score: StateScore) -> StateScore:
    """Return a score as it is where there are no documents: the mean of aggregate and membership becomes the former."""
    membership = score.values["membership"]
    aggregate = score.score if membership is None else 2 * score.score - membership
    absent = dict.fromkeys(("membership", "membership_auc", "text_loss"))
    return replace(score, values={**score.values, SCORE: aggregate, **absent})


def measure_reported(engine: Engine, point: Point, documents: Sequence[TokenSequence]) -> Reported:
    """Measure the engine's present state, which is that of `point`, against documents by which nothing is chosen.

    There is at least one.
    """
    members, losses = point.member_losses, text_losses(engine, documents)
    auc, mean = membership_auc(members, losses) if members else None, fmean(losses)
    return Reported(point.scale, len(documents), auc, mean if isfinite(mean) else None)
