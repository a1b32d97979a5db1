"""What is trained: a low-rank adapter over frozen weights (adapters.py), or weights themselves (weights.py)."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from torch import Tensor, nn
from transformers import PreTrainedModel


class Adapted(Protocol):
    """A model of which something is trained; everything else is frozen."""

    @property
    def model(self) -> PreTrainedModel:
        """The causal language model itself."""

    @property
    def targets(self) -> tuple[str, ...]:
        """The names of the trained or adapted modules."""

    @property
    def is_switchable(self) -> bool:
        """Whether `off` gives the reference at any time; else only before the first step."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for the user on what is trained and what is not."""

    def off(self) -> AbstractContextManager[None]:
        """Return a context in which the model is the reference."""

    def parameters(self) -> list[nn.Parameter]:
        """Return the trained parameters, float32, in a fixed order."""

    def update_model(self) -> None:
        """Bring the model up to date with the trained parameters, after a step of the optimiser."""

    def trained(self) -> dict[str, Tensor]:
        """Return the trained parameters themselves by name, without gradients."""

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Restore the values that `trained` returned, or a copy of them."""

    def merged_state(self) -> Mapping[str, Tensor]:
        """Return the weights by name of the ordinary checkpoint that the trained model is."""

    def is_lost_in(self, merged: Mapping[str, Tensor]) -> bool:
        """Return whether something was trained of which `merged`, the weights to save, show nothing at all."""

    def save(self, folder: Path) -> None:
        """Write the trained parameters in their own layout, if there is one."""
