"""What the loop trains: a job says which rows make a step, what they cost and how a state is judged.

Unlearning (unlearning/problem.py) and memorising (memorizing/job.py) are two of them.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from letheon.data.packing import PackedBatch
from letheon.data.schedules import Schedule
from letheon.objective.control import Control
from letheon.objective.values import Loss
from letheon.training.judge import Judge

Factors = Mapping[str, float]
"""What the weights of terms are multiplied by, by name; 1 for others."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What goes through the model at once: a step, or a part of one."""

    batch: PackedBatch
    loss: Callable[[Factors], Loss]
    """Takes it forwards; the losses of a step's pieces add up to that of the step."""


class Trained(Protocol):
    """A model of which something is trained (see model/adapted.py)."""

    @property
    def model(self) -> nn.Module:
        """The model itself."""

    def parameters(self) -> list[nn.Parameter]:
        """Return the trained parameters, in a fixed order."""

    def update_model(self) -> None:
        """Bring the model up to date with the trained parameters, after a step of the optimiser."""

    def trained(self) -> dict[str, Tensor]:
        """Return the trained parameters themselves by name, without gradients."""

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Restore the values that `trained` returned, or a copy of them."""


class Job(Protocol):
    """All that is fixed while something trains."""

    @property
    def adapted(self) -> Trained:
        """What is trained."""

    @property
    def schedule(self) -> Schedule:
        """Which rows make the steps."""

    @property
    def judge(self) -> Judge:
        """How states are judged."""

    @property
    def control(self) -> Control | None:
        """How weights follow what is measured; None if they are fixed."""

    @property
    def read(self) -> Mapping[str, Any]:
        """Fingerprints of the inputs; empty if the job cannot be resumed."""

    @property
    def part_names(self) -> tuple[str, ...]:
        """The names of the parts that a step's loss may have."""

    @property
    def forward_token_s(self) -> float:
        """How long a token takes in a forward without gradients, measured before the first step; 0 if it was not."""

    @property
    def advice(self) -> str:
        """What to do about a loss that is not finite."""

    def running(self) -> AbstractContextManager[None]:
        """Return a context in which the model can be run."""

    def rows_of_step(self, step: int, factors: Factors | None = None) -> list[int]:
        """Return the numbers of the rows of a step, counted from 0, but for those of which no term counts."""

    def pieces(self, rows: Sequence[int], *, max_tokens: int) -> list[Piece]:
        """Return the pieces of a step over `rows`: at most `max_tokens` tokens each, if the step can be split.

        Of several processes each gets its own, so that all pieces add up to the step; there may be none.
        """

    def num_tokens_of(self, rows: Sequence[int]) -> int:
        """Return how many tokens the rows have."""

    def total(self, parts: Mapping[str, float | None], factors: Factors) -> float:
        """Return the loss of a step from its unweighted parts."""

    def ids_of(self, rows: Sequence[int]) -> str:
        """Name the rows, the first few of many."""
