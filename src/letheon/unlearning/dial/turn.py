"""Choosing the scale of a trained model and setting it."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from letheon.engine.engine import Engine
from letheon.progress import Progressed
from letheon.settings import DialSettings
from letheon.training.judge import StateScore
from letheon.unlearning.dial.measure import FEWEST_DOCUMENTS, Halves, Reported, measure, measure_reported
from letheon.unlearning.dial.scaling import SetScale
from letheon.unlearning.dial.search import (
    MOST_SCALES,
    Choice,
    DialBudgets,
    Point,
    choose_by_membership,
    choose_by_recall,
)
from letheon.unlearning.interim import Probes


@dataclass(frozen=True, slots=True)
class Dialled:
    """How the scale of a model was chosen."""

    dial: str
    """What it was chosen by."""
    choice: Choice
    trained: StateScore
    """What the run found of the state at scale 1."""
    reported: tuple[Reported, ...] = ()
    """What the documents by which nothing was chosen say of the chosen scale and, where it is another, of scale 1."""
    duration_s: float = 0.0

    @property
    def scale(self) -> float:
        """The chosen scale."""
        return self.choice.point.scale

    @property
    def kept(self) -> StateScore:
        """The scores of the state at the chosen scale."""
        return replace(self.trained, values=self.choice.point.values)

    def notes(self) -> list[str]:
        """Say what was chosen and what it costs."""
        point = self.choice.point
        after = "" if point.auc is None else f", AUC {point.auc:.3f}"
        found = (
            f"dial ({self.dial}): scale {point.scale:g} of {len(self.choice.points)} measured; recall forget "
            f"{point.forget_recall:.3f}, retain {point.retain_recall:.3f}{after}"
        )
        said = [found if self.choice.reason is None else f"{found}; the scale stays at 1: {self.choice.reason}"]
        for one in self.reported[:1]:
            auc = "none, a loss is not finite" if one.auc is None else f"{one.auc:.3f}"
            said.append(f"on the {one.num_documents} documents that were not used to choose: AUC {auc}")
        return said

    def record(self) -> dict[str, Any]:
        """Return what provenance.json says of it."""
        return {
            "dial": self.dial,
            "scale": self.scale,
            "reason": self.choice.reason,
            "points": [point.flat() for point in self.choice.points],
            "reported": [one.flat() for one in self.reported],
            "trained": self.trained.flat(),
            "duration_s": round(self.duration_s, 3),
        }


def turn_dial(
    settings: DialSettings,
    *,
    engine: Engine,
    probes: Probes,
    halves: Halves,
    set_scale: SetScale,
    trained: StateScore,
    start: StateScore | None,
    goes_on: Callable[[float], bool] = lambda _: True,
    progress: Progressed | None = None,
) -> Dialled:
    """Choose the scale of the engine's model, which is at 1, and set it.

    `trained` is what the judge of the run gives at scale 1, `start` what it gives at 0, None where it was not asked.
    `goes_on` is asked before each measurement, with the seconds that it will take; `progress` hears of them.
    """
    began, known = time.monotonic(), {1.0: trained, 0.0: start}
    durations_s = list[float]()

    def measured(scale: float) -> Point:
        if progress is not None:
            progress("choosing the scale", len(durations_s), MOST_SCALES)
        started = time.monotonic()
        set_scale(scale)
        point = measure(engine, probes, halves.chosen_by, scale=scale, known=known.get(scale))
        durations_s.append(time.monotonic() - started)
        return point

    def may_go_on() -> bool:
        # What is reported takes as long again, and the first measurement may be of documents alone.
        return goes_on(3 * max(durations_s))

    with engine.running():
        if settings.dial == "membership":
            budgets = DialBudgets(settings.dial_forget_budget, settings.dial_retain_budget, settings.dial_text_budget)
            choice = choose_by_membership(measured, budgets, goes_on=may_go_on)
        else:
            choice = choose_by_recall(measured, goes_on=may_go_on)
        reported = []
        for scale, point in {1.0: choice.points[-1], choice.point.scale: choice.point}.items():
            if halves.reported_on:
                set_scale(scale)
                reported.append(measure_reported(engine, point, halves.reported_on))
        set_scale(choice.point.scale)
    return Dialled(settings.dial, choice, trained, tuple(reversed(reported)), time.monotonic() - began)


def few_documents(settings: DialSettings, halves: Halves) -> tuple[str, ...]:
    """Warn of a scale that is chosen by few documents."""
    sizes = len(halves.chosen_by), len(halves.reported_on)
    if settings.dial != "membership" or min(sizes) >= FEWEST_DOCUMENTS:
        return ()
    return (
        f"WARNING: the dial chooses by {sizes[0]} of the holdout documents and reports on the other {sizes[1]}; with "
        f"fewer than {FEWEST_DOCUMENTS} in a half the AUC is uncertain by more than .05 either way; give more "
        f"documents by --holdout",
    )
