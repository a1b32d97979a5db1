"""How the states of an unlearning run are judged: recall of forget and retain rows, within budgets."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from letheon.data.probing import unknown_sides
from letheon.engine.engine import Engine
from letheon.progress import Progressed
from letheon.settings import ScoringSettings
from letheon.training.judge import Better, History, StateScore, highest, sound
from letheon.unlearning.interim import BETTER, Probes, interim_score

STUCK = 0.1
"""`forget_repetition` from which answers to forget rows soon repeat themselves when the model writes them alone."""


@dataclass(frozen=True, slots=True)
class Start:
    """What the reference scores: how well the rows are known, and what budgets are counted against."""

    score: StateScore

    @property
    def unknown(self) -> list[str]:
        """The sides, "forget" and "retain", that the model does not know."""
        values = self.score.values
        return unknown_sides(values["forget_recall"] or 0.0, values["retain_recall"] or 0.0)


@dataclass(frozen=True, slots=True)
class Budgets:
    """By how much losses may rise, nats a token; None for any."""

    retain: float | None = None
    text: float | None = None

    @classmethod
    def of(cls, settings: ScoringSettings) -> "Budgets":
        """Return those that were set."""
        return cls(settings.retain_budget, settings.text_budget)


@dataclass(frozen=True, slots=True)
class UnlearningJudge:
    """Judges by a cheap score (see interim.py); a state past a budget has collapsed."""

    engine: Engine
    probes: Probes
    start: Start | None
    budgets: Budgets

    @property
    def better(self) -> Mapping[str, Better]:
        """In which direction each score is better."""
        return BETTER

    @property
    def num_tokens(self) -> int:
        """How many tokens a scoring reads, as an upper bound."""
        return self.probes.num_tokens

    def score(self, *, step: int, epoch: float, progress: Progressed | None = None) -> StateScore:
        """Score the present state."""
        return interim_score(self.engine, self.probes, step=step, epoch=epoch, progress=progress)

    def collapse(self, score: StateScore) -> str | None:
        """Return which budget a state is past, None if it is within both or none is set."""
        if self.start is None:
            return None
        budgets = (
            ("retain loss", "retain_loss", self.budgets.retain),
            ("loss of unseen documents", "text_loss", self.budgets.text),
        )
        for name, value, budget in budgets:
            now, before = score.values[value], self.start.score.values[value]
            # Written so that a loss that is not a number counts as past its budget.
            if budget is not None and now is not None and before is not None and not now - before <= budget:
                return f"collapse: {name} {now:.3g} nats a token, {before:.3g} at the start, budget {budget:g}"
        return None

    def noise(self, score: StateScore) -> float:
        """Return the standard error of the score as if it were a share of the forget rows that are right.

        Two right and two wrong rows are added, so that it is not 0 at 0 and 1 (Agresti and Coull 1998).
        """
        num_rows = self.probes.num_forget_rows
        share = (score.score * num_rows + 2) / (num_rows + 4)
        return math.sqrt(share * (1 - share) / (num_rows + 4))

    def is_preferred(self, score: StateScore) -> bool:
        """Return whether the answers to forget rows do not repeat themselves."""
        repetition = score.values.get("forget_repetition")
        return repetition is not None and repetition <= STUCK

    def why_kept(self, history: History, kept: StateScore) -> str | None:
        """Say why a state is kept although another has a better score; None where none has."""
        top = highest(sound(history, self), self)
        is_close = top.score - kept.score <= self.noise(top)
        if not is_close or not self.is_preferred(kept) or self.is_preferred(top):
            return None
        return (
            f"epoch {kept.epoch:g} is kept (score {kept.score:.3f}), not epoch {top.epoch:g} ({top.score:.3f}): they "
            f"differ by less than chance does ({self.noise(top):.3f}), and the answers to forget rows repeat "
            f"themselves there ({top.values['forget_repetition'] or 0.0:.2f}, here "
            f"{kept.values['forget_repetition'] or 0.0:.2f})"
        )

    def describe(self, score: StateScore) -> str:
        """Return a line on a state: its recalls and what else was measured."""
        values = score.values
        membership = "" if values["membership"] is None else f"membership {values['membership']:.3f}, "
        divergence = "" if values["retain_kl"] is None else f"retain KL {values['retain_kl']:.3g} nats, "
        general = "" if values.get("general_kl") is None else f"general KL {values['general_kl']:.3g} nats, "
        taught = "" if values.get("instead_recall") is None else f"other answers {values['instead_recall']:.3f}, "
        match = "" if values.get("forget_match") is None else f" ({values['forget_match']:.3f} of tokens)"
        return (
            f"epoch {score.epoch:g}: recall forget {values['forget_recall']:.3f}{match}, "
            f"retain {values['retain_recall']:.3f}, {taught}{membership}{divergence}{general}score {score.score:.3f}"
        )
