"""The command line with another training step, to see what makes forgetting harder to undo: docs/audits.md.

    python -m bench.changed_steps CHANGE=SIZE unlearn ...

    sharpness          the gradient of the forget terms is that at weights moved by SIZE along it (Foret et al. 2020,
                       arXiv 2010.01412; against relearning Fan et al. 2025, arXiv 2502.05374)
    noisy-gradients    noise of SIZE times its length is added to the gradient of the forget terms
    noisy-states       for the forget terms every state of the first layer moves by SIZE times its length in a random
                       direction
    adversarial-states the same in the direction that makes the forget terms larger, in one step (after Sheshadri et
                       al. 2024, arXiv 2407.15549, who take several towards the answer that was to be forgotten)

Retain terms are computed as always. None of these is a setting, since none has been seen to help. `python -m
bench.audits` runs them as variants.
"""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from letheon.cli.main import cli
from letheon.model.layers import decoder_layers
from letheon.training import step
from letheon.training.step import DeviceParts, add_gradients

Gradients = Callable[..., tuple[DeviceParts, int]]
"""`add_gradients`, or what takes its place."""


@dataclass(frozen=True, slots=True)
class Sides:
    """A step whose forget terms and other terms are computed apart."""

    job: Any
    rows: Sequence[int]
    given: dict[str, Any]
    """Further arguments of `add_gradients`."""

    def add_forget(self) -> tuple[DeviceParts, int]:
        """Add the gradients of the forget terms; return all terms and the tokens read."""
        return self._add(leave_out=[name for name in self.job.part_names if name.startswith("retain")])

    def add_others(self) -> None:
        """Add the gradients of the other terms."""
        self._add(leave_out=[name for name in self.job.part_names if not name.startswith("retain")])

    def take_gradients(self) -> list[Tensor]:
        """Return the gradients of the trained parameters and clear them."""
        trained = self.job.adapted.parameters()
        found = [torch.zeros_like(one) if one.grad is None else one.grad.detach().clone() for one in trained]
        for one in trained:
            one.grad = None
        return found

    def _add(self, *, leave_out: Sequence[str]) -> tuple[DeviceParts, int]:
        factors = {**(self.given.get("factors") or {}), **dict.fromkeys(leave_out, 0.0)}
        return add_gradients(self.job, self.rows, **{**self.given, "factors": factors})


def sharpness(sides: Sides, size: float, _: torch.Generator) -> tuple[DeviceParts, int]:
    """Take the forget gradient at weights moved by `size` along it."""
    found = sides.add_forget()
    along = sides.take_gradients()
    with moved(sides.job.adapted, along, size / max(_length(along), 1e-30)):
        sides.add_forget()
    return found


def noisy_gradients(sides: Sides, size: float, draw: torch.Generator) -> tuple[DeviceParts, int]:
    """Add noise whose expected length is `size` times that of the forget gradient."""
    found = sides.add_forget()
    trained, gradients = sides.job.adapted.parameters(), sides.take_gradients()
    deviation = size * _length(gradients) / sum(one.numel() for one in trained) ** 0.5
    for parameter, gradient in zip(trained, gradients, strict=True):
        parameter.grad = gradient + deviation * torch.randn(gradient.shape, generator=draw)
    return found


def noisy_states(sides: Sides, size: float, draw: torch.Generator) -> tuple[DeviceParts, int]:
    """Compute the forget terms from states that are moved in random directions."""

    def noise(states: Tensor) -> Tensor:
        return _of_length(size, states, torch.randn(states.shape, generator=draw))

    with added_to_states(sides, noise):
        return sides.add_forget()


def adversarial_states(sides: Sides, size: float, _: torch.Generator) -> tuple[DeviceParts, int]:
    """Compute the forget terms from states that are moved to where these are larger."""
    seen: list[tuple[Tensor, Tensor]] = []

    def nothing(states: Tensor) -> Tensor:
        seen.append((states.detach(), torch.zeros_like(states, requires_grad=True)))
        return seen[-1][1]

    with added_to_states(sides, nothing):
        sides.add_forget()
    sides.take_gradients()
    moves = iter([_of_length(size, states, zero if zero.grad is None else zero.grad) for states, zero in seen])
    with added_to_states(sides, lambda _: next(moves)):
        return sides.add_forget()


CHANGES = {
    "sharpness": sharpness,
    "noisy-gradients": noisy_gradients,
    "noisy-states": noisy_states,
    "adversarial-states": adversarial_states,
}


def changed(name: str, size: float) -> Gradients:
    """Return what takes the place of `add_gradients`."""
    draw = torch.Generator().manual_seed(0)

    def add(job: Any, rows: Sequence[int], **given: Any) -> tuple[DeviceParts, int]:
        sides = Sides(job, rows, given)
        found = CHANGES[name](sides, size, draw)
        sides.add_others()
        return found

    return add


@contextmanager
def moved(adapted: Any, along: Sequence[Tensor], share: float) -> Iterator[None]:
    """Move the trained parameters by `share` times `along` while the block runs."""
    own = [one.detach().clone() for one in adapted.parameters()]
    with torch.no_grad():
        for parameter, change in zip(adapted.parameters(), along, strict=True):
            parameter.add_(change, alpha=share)
    adapted.update_model()
    yield
    with torch.no_grad():
        for parameter, value in zip(adapted.parameters(), own, strict=True):
            parameter.copy_(value)
    adapted.update_model()


@contextmanager
def added_to_states(sides: Sides, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Add what `change` returns of them to the states that the first layer gives while the block runs."""

    def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (output[0] + change(output[0]), *output[1:])
        return output + change(output)

    handle = decoder_layers(sides.job.adapted.model)[0].register_forward_hook(hook)
    yield
    handle.remove()


def _of_length(size: float, states: Tensor, directions: Tensor) -> Tensor:
    """Return `directions` (..., D), each `size` times as long as the state in its place; zero ones stay."""
    own, theirs = _lengths(states), _lengths(directions)
    return size * own * directions.detach() / theirs.clamp_min(1e-30)


def _lengths(vectors: Tensor) -> Tensor:
    found: Tensor = vectors.detach().norm(dim=-1, keepdim=True)
    return found


def _length(gradients: Sequence[Tensor]) -> float:
    """The length of all of them together."""
    return math.sqrt(sum(float(one.square().sum()) for one in gradients))


if __name__ == "__main__":
    change, _, amount = sys.argv.pop(1).partition("=")
    step.add_gradients = changed(change, float(amount))
    cli()
