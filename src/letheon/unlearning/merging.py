"""What it changes that an adapter trained over quantised weights is merged into the dequantised ones and saved.

The run has scored the quantised model with the adapter beside it. What is saved is that model with its adapter folded
in and every matrix rounded to the dtype on disk, so both are compared on the rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from letheon.data.sequences import TokenSequence
from letheon.engine.engine import Engine
from letheon.model.adapted import Adapted
from letheon.model.adapters import LoraAdapter
from letheon.model.quantised_layers import kind_of
from letheon.model.taking import computing_as_saved
from letheon.model.widening import saved_dtype
from letheon.progress import Progressed
from letheon.training.judge import SCORE, StateScore
from letheon.unlearning.interim import Probes, answer_log_probs, interim_score

Side = Literal["forget", "retain"]

_TOLD = {"forget_recall": "recall forget", "retain_recall": "recall retain", SCORE: "score"}


@dataclass(frozen=True, slots=True)
class Shift:
    """By how much log-probabilities of answer tokens differ, nats."""

    mean: float
    largest: float


@dataclass(frozen=True, slots=True)
class MergingDifference:
    """How the saved model differs from the one that was trained and scored."""

    kind: str
    """How the weights were quantised: "nf4", "fp4" or "int8"."""
    saved: str
    """The dtype that the merged weights are saved in."""
    shifts: Mapping[Side, Shift]
    trained: StateScore
    """Scores of the quantised model with the adapter."""
    merged: StateScore
    """Scores of the saved model."""

    @property
    def sentence(self) -> str:
        """Say it in one line."""
        sides = " and ".join(
            f"{one.mean:.2g} nats on {side} rows (at most {one.largest:.2g})" for side, one in self.shifts.items()
        )
        before, after = self.trained.values, self.merged.values
        scores = ", ".join(f"{label} from {before[name]:.3f} to {after[name]:.3f}" for name, label in _TOLD.items())
        return (
            f"merging the adapter into the dequantised weights ({self.kind}, saved in {self.saved}) changed the "
            f"log-probability of an answer token by {sides} on average; {scores}"
        )

    def record(self) -> dict[str, Any]:
        """Return it for provenance.json."""
        shifts = {side: {"mean": one.mean, "largest": one.largest} for side, one in self.shifts.items()}
        return {
            "log_prob_shift": shifts,
            "trained": self.trained.flat(),
            "merged": self.merged.flat(),
            "sentence": self.sentence,
        }


def measure_merging(
    engine: Engine, adapted: Adapted, probes: Probes, *, trained: StateScore, progress: Progressed | None = None
) -> MergingDifference | None:
    """Compare the model's present state, of scores `trained`, with what is saved of it; None of ordinary weights.

    Takes three passes over the scored rows. None also of adapters that are trained together over one model.

    Raises:
        ModelError: a layer's adapter cannot be merged.
    """
    kind = kind_of(adapted.model)
    if kind is None or not isinstance(adapted, LoraAdapter):
        return None
    present = answer_log_probs(engine, probes.answers)
    with computing_as_saved(adapted):
        saved = answer_log_probs(engine, probes.answers)
        merged = interim_score(engine, probes, step=trained.step, epoch=trained.epoch, progress=progress)
    return MergingDifference(
        kind=kind,
        saved=str(saved_dtype(adapted.model)).removeprefix("torch."),
        shifts=_shifts((present - saved).abs(), probes.answers, num_forget=probes.num_forget_rows),
        trained=trained,
        merged=merged,
    )


def _shifts(differences: Tensor, answers: Sequence[TokenSequence], *, num_forget: int) -> dict[Side, Shift]:
    """The shifts by side of the differences (A,) at all answer tokens, forget rows first."""
    cut = sum(answer.num_answer_tokens for answer in answers[:num_forget])
    return {"forget": _shift(differences[:cut]), "retain": _shift(differences[cut:])}


def _shift(differences: Tensor) -> Shift:
    return Shift(mean=float(differences.double().mean()), largest=float(differences.max()))
