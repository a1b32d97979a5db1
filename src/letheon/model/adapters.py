"""LoRA adapters through PEFT: attach, switch off, merge, save."""

import math
import warnings
from collections.abc import Sequence as Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from letheon.errors import ModelError, OutputError, nearest
from letheon.files import replace_folder
from letheon.model.adapted import names_in_layers
from letheon.model.lowrank import ADAPTER
from letheon.model.trunk import trunk_of

SEED_TARGETS = ("q_proj", "v_proj")
ALL_LINEAR = "all-linear"

FUSED_TARGETS: dict[str, tuple[str, ...]] = {
    "q_proj": ("query_key_value", "c_attn", "qkv_proj", "Wqkv", "q", "query", "wq"),
    "k_proj": ("query_key_value", "c_attn", "qkv_proj", "Wqkv", "k", "key", "wk"),
    "v_proj": ("query_key_value", "c_attn", "qkv_proj", "Wqkv", "v", "value", "wv"),
    "o_proj": ("dense", "c_proj", "out_proj", "o", "wo"),
}
"""What other architectures call the projections, or the fused layer that holds them, in order of preference."""


Init = Literal["xavier", "kaiming"]


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """A low-rank adapter: y = W x + (alpha / rank) B A x."""

    rank: int = 5
    alpha: float = 5.0
    targets: tuple[str, ...] = SEED_TARGETS
    layers: str | None = None
    """A span of decoder layers, such as "0:6" or "-8:", to keep to; None for all."""
    rank_stabilised: bool = False
    """Factor alpha / sqrt(rank) in place of alpha / rank (rsLoRA, Kalajdzievski 2023, arXiv 2312.03732)."""
    decomposed: bool = False
    """Train magnitude and direction apart (DoRA, Liu et al. 2024, arXiv 2402.09353)."""
    dropout: float = 0.0
    """Share of the adapter's inputs that are dropped while its dropout modules are in training mode."""
    init: Init = "xavier"
    """How A is drawn: "xavier", standard deviation sqrt(2 / (D + rank)), or "kaiming", uniform of standard deviation
    sqrt(1 / (3 D)), PEFT's default."""

    @property
    def factor(self) -> float:
        """Factor of B A."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilised else self.rank)


@dataclass(frozen=True, slots=True)
class LoraAdapter:
    """A frozen model with one trainable adapter in it."""

    peft: PeftModel
    model: PreTrainedModel
    """The causal language model itself, the adapter's layers inside."""
    targets: tuple[str, ...]
    """The names of the adapted layers."""
    is_switchable: bool = True

    def off(self) -> AbstractContextManager[None]:
        """Return a context in which the model is the reference."""
        context: AbstractContextManager[None] = self.peft.disable_adapter()
        return context

    def parameters(self) -> list[nn.Parameter]:
        """Return the trained parameters, float32, in a fixed order."""
        return [p for _, p in sorted(self.peft.named_parameters()) if p.requires_grad]

    def settle(self) -> None:
        """Do nothing: the model computes with the trained parameters themselves."""

    def trained(self) -> dict[str, Tensor]:
        """Return the trained parameters themselves by name, without gradients."""
        return {name: p.detach() for name, p in self.peft.named_parameters() if p.requires_grad}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Put back what `trained` returned, or a copy of it."""
        named = dict(self.peft.named_parameters())
        with torch.no_grad():
            for name, value in state.items():
                named[name].copy_(value)

    @torch.no_grad()
    def merged_state(self) -> dict[str, Tensor]:
        """Return the ordinary model's weights with the adapter folded in, W + (alpha / rank) B A, summed in float32.

        The model itself is left as it is: merging in place would move the reference that the run is measured against.
        """
        merged = {
            f"{name}.base_layer.weight": _merged_weight(module)
            for name, module in self.model.named_modules()
            if isinstance(module, LoraLinear)
        }
        state = self.model.state_dict()
        return {
            name.replace(".base_layer.", "."): merged.get(name, value)
            for name, value in state.items()
            if ".lora_" not in name
        }

    @torch.no_grad()
    def scale(self, factor: float) -> None:
        """Multiply what the adapter adds to the weights by `factor`; -1 subtracts what was learned (task vectors)."""
        for name, parameter in self.peft.named_parameters():
            if ".lora_B." in name:
                parameter.mul_(factor)

    @torch.no_grad()
    def merge_ties(self, states: Collection[dict[str, Tensor]], *, density: float) -> None:
        """Become the TIES merge of several trained states of this adapter, each of weight 1 (PEFT's, on A and B apart).

        `density` is the share of each state's entries that is kept (Yadav et al. 2023, arXiv 2306.01708).
        """
        names = [f"member{number}" for number in range(len(states))]
        for name, state in zip(names, states, strict=True):
            self.peft.add_adapter(name, self.peft.peft_config[ADAPTER])
            self._load_as(name, state)
        tuner: Any = self.peft.base_model
        tuner.add_weighted_adapter(names, [1.0] * len(names), "merged", combination_type="ties", density=density)
        for layer in (m for m in self.model.modules() if isinstance(m, LoraLinear)):
            down: Any = layer.lora_A
            up: Any = layer.lora_B
            down[ADAPTER].weight.copy_(down["merged"].weight)
            # PEFT multiplies the factor in, also where its own bookkeeping says otherwise (rsLoRA).
            up[ADAPTER].weight.copy_(up["merged"].weight / layer.scaling[ADAPTER])
        for name in (*names, "merged"):
            self.peft.delete_adapter(name)
        self.peft.set_adapter(ADAPTER)

    def _load_as(self, name: str, state: dict[str, Tensor]) -> None:
        named = dict(self.peft.named_parameters())
        for key, value in state.items():
            named[key.replace(f".{ADAPTER}.", f".{name}.")].copy_(value)

    def save(self, folder: Path) -> None:
        """Write the adapter in PEFT's layout, whole or not at all.

        Raises:
            OutputError: it cannot be written.
        """
        try:
            with replace_folder(folder) as temporary:
                self.peft.save_pretrained(str(temporary))
        except SafetensorError as error:
            raise OutputError(f"{folder}: the adapter cannot be written ({error}); is the disk full?") from error


def attach_lora(model: PreTrainedModel, settings: LoraSettings, *, seed: int) -> LoraAdapter:
    """Freeze `model` and put a LoRA adapter into it: A Xavier-normal from `seed`, B zero, both float32.

    With B = 0 the adapted model equals the model.

    Raises:
        ModelError: the model has no layer of the wanted names, or one that cannot carry an adapter.
    """
    targets = resolve_targets(model, settings.targets)
    inside = names_in_layers(model, settings.layers) if settings.layers else _text_part(model)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # any number serves
        target_modules=list(targets) if inside is None else _paths(model, targets, inside),
        lora_dropout=settings.dropout,
        bias="none",
        task_type="CAUSAL_LM",
        use_rslora=settings.rank_stabilised,
        use_dora=settings.decomposed,
        fan_in_fan_out=_targets_are_transposed(model, targets),
    )
    with warnings.catch_warnings():
        # PEFT 0.21 asks transformers 5.23 by a name that the latter renamed.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        try:
            peft = get_peft_model(model, config)
        except ValueError as error:
            raise ModelError(
                f"target_modules: {', '.join(targets)} of {type(model).__name__} cannot carry an adapter ({error})"
            ) from error
    named = dict(peft.named_parameters())
    for name, value in first_values(peft, rank=settings.rank, seed=seed, init=settings.init).items():
        named[name].data = value
    for layer in (module for module in peft.modules() if isinstance(module, LoraLinear)):
        layer.lora_dropout.eval()  # on in steps alone
        if settings.decomposed:
            _set_magnitude(layer)
    return LoraAdapter(peft=peft, model=cast("PreTrainedModel", peft.get_base_model()), targets=targets)


@torch.no_grad()
def _set_magnitude(layer: LoraLinear) -> None:
    """Begin with the lengths of the weights' rows in float32: PEFT rounds them to the weights' own dtype."""
    base: Any = layer.get_base_layer()
    vector: Any = layer.lora_magnitude_vector
    vector[ADAPTER].weight.copy_(torch.linalg.norm(base.weight.float(), dim=0 if isinstance(base, Conv1D) else 1))


def resolve_targets(model: PreTrainedModel, wanted: Collection[str]) -> tuple[str, ...]:
    """Return the names of the layers to adapt, those of other architectures standing in for q_proj and the like.

    `wanted` holds layer names, or ALL_LINEAR alone: every linear layer but the head.

    Raises:
        ModelError: a name fits no layer.
    """
    available = _linear_names(model)
    if tuple(wanted) == (ALL_LINEAR,):
        return tuple(sorted(available))
    found: list[str] = []
    for name in wanted:
        match = next((n for n in (name, *FUSED_TARGETS.get(name, ())) if n in available), None)
        if match is None:
            raise ModelError(
                f"target_modules: {type(model).__name__} has no linear layer '{name}'{nearest(name, available)}; "
                f"it has {', '.join(sorted(available))} (or say all-linear)"
            )
        if match not in found:
            found.append(match)
    return tuple(found)


def _text_part(model: PreTrainedModel) -> tuple[str, ...] | None:
    """The prefix of all names below the head where other modules stand beside (a vision encoder), else None."""
    trunk = trunk_of(model)
    if trunk is model.base_model:
        return None
    return tuple(f"{name}." for name, module in model.named_modules() if module is trunk)


def _paths(model: PreTrainedModel, targets: Collection[str], inside: tuple[str, ...]) -> list[str]:
    """Whole names of the layers called one of `targets` under one of the prefixes `inside`."""
    found = [n for n, _ in model.named_modules() if n.rsplit(".", 1)[-1] in targets and n.startswith(inside)]
    if not found:
        raise ModelError(f"layers: none of {', '.join(targets)} lies inside the wanted layers")
    return found


def _merged_weight(layer: LoraLinear) -> Tensor:
    """Sum in float32 and round at once: held in float32, all of them would take twice the model."""
    rounded = cast("Tensor", layer.get_base_layer().weight)
    weight = rounded.float()
    if ADAPTER in layer.lora_variant:
        merged: Tensor = layer.lora_variant[ADAPTER].merge_safe(layer, ADAPTER, weight)
    else:
        merged = weight + layer.get_delta_weight(ADAPTER).float()
    return merged.to(rounded.dtype)


def _linear_names(model: PreTrainedModel) -> set[str]:
    head = model.get_output_embeddings()
    return {
        name.rsplit(".", 1)[-1]
        for name, module in trunk_of(model).named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and module is not head
    }


def _targets_are_transposed(model: PreTrainedModel, targets: Collection[str]) -> bool:
    """GPT-2's Conv1D keeps its weight as (in, out)."""
    modules = [m for name, m in model.named_modules() if name.rsplit(".", 1)[-1] in targets]
    return any(isinstance(module, Conv1D) for module in modules)


@torch.no_grad()
def first_values(adapter: LoraAdapter | PeftModel, *, rank: int, seed: int, init: Init = "xavier") -> dict[str, Tensor]:
    """Return what an adapter in the same layers begins with, by name: A (rank, D) drawn by `init`, B (O, rank) zero.

    float32, where the parameters of `adapter` lie, which may be of another rank.
    """
    peft = adapter.peft if isinstance(adapter, LoraAdapter) else adapter
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, Tensor] = {}
    for name, parameter in sorted(peft.named_parameters()):
        if ".lora_A." in name:
            values = torch.empty((rank, parameter.shape[1]), dtype=torch.float32)
            if init == "xavier":
                nn.init.xavier_normal_(values, generator=generator)
            else:
                nn.init.kaiming_uniform_(values, a=math.sqrt(5), generator=generator)
            found[name] = values.to(parameter.device)
        elif ".lora_B." in name:
            found[name] = torch.zeros((parameter.shape[0], rank), dtype=torch.float32, device=parameter.device)
    return found
