"""The loop on a job that has nothing to do with language: it trains whatever it is given, in either direction."""

import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from letheon.data.packing import PackedBatch, pack
from letheon.data.schedules import MixedSchedule
from letheon.data.sequences import TokenSequence
from letheon.errors import DivergenceError
from letheon.objective.values import Loss
from letheon.signals import Interruption
from letheon.training.checkpoint import checkpoint_of, newest_checkpoint
from letheon.training.job import Factors, Piece
from letheon.training.judge import Better, History, StateScore, best
from letheon.training.loop import begin, train
from letheon.training.state import Hooks, Outcome, Run
from letheon.training.stopping import Clock, choose_kept, why_stop
from letheon.training.tracking import Silent, open_log

TARGETS = torch.tensor([1.0, 2.0, 4.0, 8.0])
"""What each of four rows pulls the one parameter towards."""


@dataclass(frozen=True)
class Point:
    """A model of one number."""

    model: nn.Module

    @property
    def value(self) -> nn.Parameter:
        return self.model.get_parameter("value")

    def parameters(self) -> list[nn.Parameter]:
        return [self.value]

    def update_model(self) -> None:
        """There is nothing to bring up to date."""

    def trained(self) -> dict[str, Tensor]:
        return {"value": self.value.detach()}

    @torch.no_grad()
    def load_state(self, state: dict[str, Tensor]) -> None:
        self.value.copy_(state["value"])


@dataclass(frozen=True)
class Distance:
    """Judges a state by its distance from a number, or by how far it has come, as it is told."""

    point: Point
    goal: float
    better: Mapping[str, Better]
    num_tokens: int = 0

    def score(self, *, step: int, epoch: float, progress: Any = None) -> StateScore:
        return StateScore(step, epoch, {"score": abs(float(self.point.value.detach()) - self.goal)})

    def collapse(self, score: StateScore) -> str | None:
        return None

    def noise(self, score: StateScore) -> float:
        return 0.0

    def is_preferred(self, score: StateScore) -> bool:
        return False

    def describe(self, score: StateScore) -> str:
        return f"{score.score:.3g} away"


@dataclass(frozen=True)
class Pull:
    """A job: half the squared distance from the target of each row, mean over the rows of a step."""

    adapted: Point
    schedule: MixedSchedule
    judge: Distance
    control: None = None
    read: Mapping[str, Any] = field(default_factory=dict)
    forward_token_s: float = 0.0
    advice: str = "pull less"
    part_names: tuple[str, ...] = ("pull",)

    def running(self) -> AbstractContextManager[None]:
        return nullcontext()

    def rows_of_step(self, step: int, factors: Factors | None = None) -> list[int]:
        return self.schedule.rows(step)

    def pieces(self, rows: Collection[int], *, max_tokens: int) -> list[Piece]:
        batches = [pack([TokenSequence((1, 2), 1)], is_forget=[False], row_index=[row]) for row in rows]
        return [Piece(batch, partial(self._loss, batch, len(batches))) for batch in batches]

    def num_tokens_of(self, rows: Collection[int]) -> int:
        return 2 * len(rows)

    def total(self, parts: Mapping[str, float | None], factors: Factors) -> float:
        return parts["pull"] or 0.0

    def ids_of(self, rows: Collection[int]) -> str:
        return ", ".join(f"row {row}" for row in rows)

    def _loss(self, batch: PackedBatch, num_rows: int, factors: Factors) -> Loss:
        distance = self.adapted.value - TARGETS[batch.row_index]
        loss = (distance.square() / 2).sum() / num_rows
        return Loss(loss, {"pull": loss})


@dataclass(frozen=True)
class Descent:
    """Plain descent, scored and saved after every other step."""

    judge: Distance
    rate: float
    total_steps: int
    keep_last: bool = False
    is_clipped: bool = False
    """From the second step on, to three quarters of the norm before."""
    patience: int | None = None
    held_steps: frozenset[int] = frozenset()
    ends_on_collapse: bool = False
    back: tuple[int, int] = (0, 0)
    """A scored step after which training goes back, and the one that it goes back to."""

    def optimiser(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=self.rate, momentum=0.5)

    def learning_rate(self, step: int, history: History) -> float:
        return self.rate

    def max_gradient_norm(self, step: int, norms: Sequence[float]) -> float | None:
        return 0.75 * norms[-1] if self.is_clipped and norms else None

    def factors(self, history: History) -> Mapping[str, float]:
        return {}

    def is_due(self, step: int, history: History) -> bool:
        return step % 2 == 0

    def why_stop(self, history: History) -> str | None:
        return why_stop(history, self.judge, patience=self.patience, waits_on="score")

    def kept(self, history: History) -> StateScore:
        return choose_kept(history, self.judge, keep="last" if self.keep_last else "best")

    def goes_back_to(self, history: History) -> StateScore | None:
        now, then = self.back
        return next((score for score in history if score.step == then), None) if history[-1].step == now else None

    def needed(self, history: History) -> frozenset[int]:
        return frozenset({self.kept(history).step, self.back[1]} if history else ())


@dataclass(frozen=True)
class Told:
    seed: int = 0
    max_batch_tokens: int = 16
    time_limit_s: float | None = None
    checkpoint_minutes: float | None = None
    keep_checkpoints: int = 1


def job_of(goal: float = 3.0, better: Better = "lower", *, batch_size: int = 2) -> Pull:
    model = nn.Module()
    model.register_parameter("value", nn.Parameter(torch.zeros(())))
    point = Point(model)
    return Pull(point, MixedSchedule(4, batch_size, seed=0, epochs=50), Distance(point, goal, {"score": better}))


def trained(job: Pull, folder: Path, *, ask: int | None = None, rate: float = 0.1, **course: Any) -> Outcome:
    """Train, or go on where there is something to go on with; `ask` is the step after which a signal comes."""
    interruption = Interruption()

    class Asking(Silent):
        def step(self, done: int, total: int, values: Mapping[str, float | None]) -> None:
            interruption.signal_number = 15 if done == ask else interruption.signal_number

    found = newest_checkpoint(folder / "checkpoints")
    keep = found.position.log_events if found else 0
    with open_log(folder / "log.jsonl", keep_events=keep) as log:
        descent = Descent(job.judge, rate, **{"total_steps": 12, **course})
        run: Run[Pull] = begin(
            job, descent, Told(), hooks=Hooks(log, Asking()), checkpoints=folder / "checkpoints", resumed=found
        )
        return train(run, clock=Clock(None), interruption=interruption)


def values_of(outcome: Outcome) -> list[float]:
    return [score.score for score in outcome.history]


@pytest.mark.parametrize("better", ["lower", "higher"])
def test_the_state_that_is_left_is_the_best_in_the_direction_that_was_handed_in(better: Better, tmp_path: Path) -> None:
    # From 0 towards the mean, 3.75, past 3: the distance from 3 falls and rises again.
    job = job_of(goal=3.0, better=better)
    outcome = trained(job, tmp_path)
    wanted = min if better == "lower" else max
    assert outcome.kept.score == wanted(values_of(outcome))
    assert abs(float(job.adapted.value.detach()) - 3.0) == outcome.kept.score
    assert best(outcome.history, job.judge) == outcome.kept
    assert len(set(values_of(outcome))) > 3


def test_steps_are_those_of_plain_descent_worked_by_hand(tmp_path: Path) -> None:
    job = job_of(batch_size=4)
    trained(job, tmp_path, total_steps=3, keep_last=True)
    # The mean target is 3.75; momentum 0.5: v = 0.5 v + (x - 3.75), x -= 0.1 v.
    value, speed = 0.0, 0.0
    for _ in range(3):
        speed = 0.5 * speed + (value - 3.75)
        value -= 0.1 * speed
    assert float(job.adapted.value.detach()) == pytest.approx(value, rel=1e-6)


def test_a_gradient_is_clipped_by_the_norms_before_it_worked_by_hand(tmp_path: Path) -> None:
    job = job_of(batch_size=4)
    trained(job, tmp_path, total_steps=3, keep_last=True, is_clipped=True)
    # The norms that count are those before clipping: 3.75 and 3.375, of which the latter is cut to 2.8125.
    value, speed, norms = 0.0, 0.0, list[float]()
    for _ in range(3):
        gradient = value - 3.75
        norms.append(abs(gradient))
        if len(norms) > 1:
            gradient *= min(1.0, 0.75 * norms[-2] / norms[-1])
        speed = 0.5 * speed + gradient
        value -= 0.1 * speed
    assert norms[:2] == pytest.approx([3.75, 3.375])
    assert float(job.adapted.value.detach()) == pytest.approx(value, rel=1e-5)


def test_training_that_goes_back_goes_on_from_the_earlier_state_and_its_momentum(tmp_path: Path) -> None:
    job = job_of(batch_size=4)  # every step has all rows
    outcome = trained(job, tmp_path, total_steps=10, back=(6, 2), keep_last=True)
    two, four, six, eight, ten = values_of(outcome)
    assert (eight, ten) == (four, six)
    assert len({two, four, six}) == 3
    (note,) = (json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines() if "goes back" in line)
    assert note["message"] == "epoch 6: too much is lost, so training goes back to epoch 2"


def test_what_was_usual_for_a_gradient_is_forgotten_on_the_way_back(tmp_path: Path) -> None:
    job = job_of(batch_size=4)
    trained(job, tmp_path, total_steps=6, back=(6, 2), is_clipped=True)
    saved = checkpoint_of(tmp_path / "checkpoints", 6)
    assert saved.position.norms == ()
    assert saved.parameters == checkpoint_of(tmp_path / "checkpoints", 2).parameters


@pytest.mark.parametrize("changes", [{}, {"is_clipped": True}, {"back": (6, 4)}, {"back": (4, 2)}])
def test_a_job_that_is_interrupted_goes_on_to_the_same_bits(changes: dict[str, Any], tmp_path: Path) -> None:
    whole = job_of()
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    expected = trained(whole, tmp_path / "whole", **changes)
    cut = trained(job_of(), tmp_path / "cut", ask=5, **changes)
    assert (cut.step, cut.reason) == (5, "signal 15")
    again = job_of()
    found = trained(again, tmp_path / "cut", **changes)
    assert found.step == expected.step == 12
    assert torch.equal(again.adapted.value, whole.adapted.value)
    # The state in which it was cut was scored beside those that were due.
    assert [score for score in found.history if score.step != 5] == list(expected.history)


def test_patience_and_the_end_of_the_steps(tmp_path: Path) -> None:
    # Far from where the rows pull, every score is worse than the first.
    stopped = trained(job_of(goal=-5.0), tmp_path, patience=2)
    assert stopped.reason == "patience: score not better for 2 scorings"
    assert (stopped.step, stopped.kept.step) == (6, 2)


def test_a_loss_that_is_not_finite_changes_nothing(tmp_path: Path) -> None:
    job = job_of(batch_size=4)
    broken = replace(job, schedule=MixedSchedule(4, 4, seed=0, epochs=50))
    job.adapted.load_state({"value": torch.tensor(math.inf)})
    with pytest.raises(
        DivergenceError, match=r"step 1: pull.* became NaN or infinite; rows in that step: row .*pull less"
    ):
        trained(broken, tmp_path)
    assert float(job.adapted.value.detach()) == math.inf
