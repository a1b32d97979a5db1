"""Many low-rank adapters over one frozen model, trained at once.

The sequences of all adapters lie back to back in one pack: one product through each frozen matrix serves them all, only
the low-rank part is per adapter (segments.py). Each adapter begins, is saved and is merged as that of a single
run is; the model holds the layers of one adapter, which become those of any other.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora.layer import ParamWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel

from letheon.data.packing import PackedBatch
from letheon.engine.engine import Engine
from letheon.engine.segments import Segments, segmented_linear, segments_of
from letheon.errors import ModelError
from letheon.model.adapters import LoraAdapter, LoraSettings, first_values, set_alpha
from letheon.model.forwards import replaced_forwards
from letheon.model.lowrank import ADAPTER, frozen_part, is_plain, low_rank_linear
from letheon.model.widening import widened_linear


@dataclass(slots=True)
class _Dial:
    """By how much an adapter's alpha is multiplied."""

    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class PopulationAdapter:
    """An adapter: its parameters, and the shared layers that they are put into to be saved or merged."""

    shared: LoraAdapter
    settings: LoraSettings
    values: dict[str, nn.Parameter]
    """By the names that a single run's have, in their order."""
    dial: _Dial = field(default_factory=_Dial)
    is_switchable: bool = True

    @property
    def model(self) -> PreTrainedModel:
        """The causal language model itself."""
        return self.shared.model

    @property
    def targets(self) -> tuple[str, ...]:
        """The names of the adapted layers."""
        return self.shared.targets

    def off(self) -> AbstractContextManager[None]:
        """Return a context in which the model is the reference."""
        return self.shared.off()

    def parameters(self) -> list[nn.Parameter]:
        """Return the trained parameters, float32, in a fixed order."""
        return [value for _, value in sorted(self.values.items())]

    def update_model(self) -> None:
        """Do nothing: the model computes with the trained parameters themselves."""

    def trained(self) -> dict[str, Tensor]:
        """Return the trained parameters themselves by name, without gradients."""
        return {name: value.detach() for name, value in self.values.items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Restore the values that `trained` returned, or a copy of them."""
        with torch.no_grad():
            for name, value in state.items():
                self.values[name].copy_(value)

    def merged_state(self) -> Mapping[str, Tensor]:
        """Return the ordinary model's weights with this adapter folded in."""
        self._put_in()
        return self.shared.merged_state()

    @property
    def notes(self) -> tuple[str, ...]:
        """What was left out, in words."""
        return self.shared.notes

    def is_lost_in(self, merged: Mapping[str, Tensor]) -> bool:
        """Return whether this adapter is not zero but `merged`, the weights with it, are the model's own."""
        self._put_in()
        return self.shared.is_lost_in(merged)

    def save(self, folder: Path) -> None:
        """Write the adapter in PEFT's layout."""
        self._put_in()
        self.shared.save(folder)

    def set_scale(self, scale: float) -> None:
        """Multiply the adapter's alpha by `scale`, of the alpha it was trained with, and put it into the layers."""
        self.dial.scale = scale
        self._put_in()

    def _put_in(self) -> None:
        """Make the shared layers those of this adapter."""
        settings = self.settings
        config: Any = self.shared.peft.peft_config[ADAPTER]
        config.r, config.use_rslora = settings.rank, settings.rank_stabilised
        for name, layer in _layers(self.shared).items():
            layer.r[ADAPTER] = settings.rank
            for kind, module in (("lora_A", layer.lora_A[ADAPTER]), ("lora_B", layer.lora_B[ADAPTER])):
                module.weight = self.values[f"{name}.{kind}.{ADAPTER}.weight"]
        set_alpha(self.shared.peft, settings.alpha * self.dial.scale)


@dataclass(slots=True)
class _Present:
    """Whose rows the forward in progress holds."""

    adapters: tuple[int, ...] = ()
    segments: dict[int, Segments] = field(default_factory=dict)
    """By the number of rows: those of all positions, and those of the answer positions, which are fewer."""


@dataclass(frozen=True, slots=True)
class Population:
    """P adapters over one frozen model."""

    adapters: tuple[PopulationAdapter, ...]
    present: _Present = field(default_factory=_Present)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Hold open, around the engine's own `running`, what lets several adapters go through the model at once."""
        layers = _layers(self.adapters[0].shared)
        names = {layer: name for name, layer in layers.items()}
        with replaced_forwards(
            list(layers.values()), lambda layer: _Together(names[layer], layer, self.adapters, self.present)
        ):
            yield

    @contextmanager
    def together(self, adapters: Sequence[int], batches: Sequence[PackedBatch], engine: Engine) -> Iterator[None]:
        """Let the rows of a forward and its backward be those of `batches` laid back to back, one for each adapter.

        What `engine` fills the pack up with goes with the last adapter.
        """
        device = batches[0].input_ids.device
        of_all, of_answers = ([batch.num_tokens for batch in batches], [len(batch.labels) for batch in batches])
        filling = engine.filling(sum(of_all), sum(of_answers))
        of_all[-1] += filling.tokens
        of_answers[-1] += filling.answers
        found = [segments_of(lengths, device=device) for lengths in (of_all, of_answers)]
        self.present.adapters, before = tuple(adapters), self.present.adapters
        self.present.segments = {segments.num_rows: segments for segments in found}
        try:
            yield
        finally:
            self.present.adapters = before

    @contextmanager
    def alone(self, adapter: int) -> Iterator[None]:
        """Let all rows be those of one adapter."""
        self.present.adapters, before = (adapter,), self.present.adapters
        try:
            yield
        finally:
            self.present.adapters = before


def populate(shared: LoraAdapter, settings: Sequence[LoraSettings], *, seeds: Sequence[int]) -> Population:
    """Return a population in the layers of `shared`: an adapter for each of `settings`, with its seed, as if alone.

    The adapters have the layers in common; ranks and factors may differ.

    Raises:
        ModelError: a layer of the model does more than a low-rank product (see `is_plain`).
    """
    if any(isinstance(module, ParamWrapper) for module in shared.peft.modules()):
        raise ModelError("some adapters are in routed experts, which cannot compute several adapters at once")
    odd = [name for name, layer in _layers(shared).items() if not is_plain(layer)]
    if odd:
        raise ModelError(
            f"{odd[0]}: is not a plain linear layer with an adapter, so it cannot compute several adapters at once"
        )
    made = []
    for one, seed in zip(settings, seeds, strict=True):
        first = first_values(shared, rank=one.rank, seed=seed, init=one.init)
        names = [name for name, _ in shared.peft.named_parameters() if name in first]
        made.append(PopulationAdapter(shared, one, {name: nn.Parameter(first[name]) for name in names}))
    return Population(tuple(made))


class _Together:
    """The forward of one layer, for the adapters that are present."""

    def __init__(self, name: str, layer: LoraLinear, adapters: Sequence[PopulationAdapter], present: _Present) -> None:
        self._layer, self._present = layer, present
        self._weight, self._bias = frozen_part(layer)
        self._downs = [adapter.values[f"{name}.lora_A.{ADAPTER}.weight"] for adapter in adapters]
        self._ups = [adapter.values[f"{name}.lora_B.{ADAPTER}.weight"] for adapter in adapters]
        self._scalings = [adapter.settings.factor for adapter in adapters]

    def __call__(self, states: Tensor) -> Tensor:
        """Return the layer's output for states (.., D).

        Raises:
            ModelError: the rows are neither all positions nor the answer positions, so whose they are is not known.
        """
        if self._layer.disable_adapters:
            return widened_linear(states, self._weight, self._bias)
        chosen = self._present.adapters
        downs, ups = [self._downs[m] for m in chosen], [self._ups[m] for m in chosen]
        scalings = [self._scalings[m] for m in chosen]
        if len(chosen) == 1:
            return low_rank_linear(states, self._weight, self._bias, down=downs[0], up=ups[0], scaling=scalings[0])
        segments = self._present.segments.get(states.shape[:-1].numel())
        if segments is None:
            raise ModelError(
                "a layer gets only some of the positions, so Letheon cannot tell which adapter they belong to"
            )
        return segmented_linear(
            states, self._weight, self._bias, downs=downs, ups=ups, scalings=scalings, segments=segments
        )


def _layers(adapter: LoraAdapter) -> dict[str, LoraLinear]:
    return {name: module for name, module in adapter.peft.named_modules() if isinstance(module, LoraLinear)}
