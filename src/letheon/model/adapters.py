"""LoRA adapters through PEFT: attach, switch off, merge, save."""

import json
import math
import re
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast
from unittest.mock import patch

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora.layer import LoraLayer, ParamWrapper
from peft.utils.merge_utils import ties
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from letheon.devices import to_host
from letheon.errors import ModelError, OutputError
from letheon.model.codes import exact_matrix
from letheon.model.experts import keep_fused
from letheon.model.lowrank import ADAPTER
from letheon.model.merging import adapted_weights, merged_weights, merging, ordinary_weight, plain_tensors
from letheon.model.quantised_layers import plain_shapes, quantised_layers
from letheon.model.sharding import WholeState, is_sharded, whole
from letheon.model.targets import SEED_TARGETS, Targets, find_targets, peft_names
from letheon.model.widening import widening_of
from letheon.storage.files import replace_folder
from letheon.storage.hub import is_hub_id
from letheon.storage.run_folder import CARD_FILE

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
    tensors: Mapping[str, torch.Size]
    """Names and shapes of the plain model's weights and buffers."""
    alpha: float
    """As it was trained with; `set_scale` multiplies it."""
    notes: tuple[str, ...] = ()
    """What was left out, in words."""
    is_switchable: bool = True

    def off(self) -> AbstractContextManager[None]:
        """Return a context in which the model is the reference."""
        context: AbstractContextManager[None] = self.peft.disable_adapter()
        return context

    def parameters(self) -> list[nn.Parameter]:
        """Return the trained parameters, float32, in a fixed order."""
        return [p for _, p in sorted(self.peft.named_parameters()) if p.requires_grad]

    def update_model(self) -> None:
        """Do nothing: the model computes with the trained parameters themselves."""

    def trained(self) -> dict[str, Tensor]:
        """Return the trained parameters themselves by name, without gradients."""
        return {name: p.detach() for name, p in self.peft.named_parameters() if p.requires_grad}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Restore the values that `trained` returned, or a copy of them."""
        named = dict(self.peft.named_parameters())
        with torch.no_grad():
            for name, value in state.items():
                named[name].copy_(value)

    @torch.no_grad()
    def merged_state(self) -> Mapping[str, Tensor]:
        """Return the ordinary model's weights with the adapter folded in, W + (alpha / rank) B A, summed in float32.

        Merged matrices go to main memory one by one, since a GPU that trains an adapter need not have room for them.
        Quantised ones are dequantised in the dtype that the model is saved in. Weights that lie in shares are gathered
        and merged when they are asked for. The model itself is left as it is: merging in place would move the reference
        that the run is measured against.

        Raises:
            ModelError: a layer's adapter cannot be merged, or the weights would not be those of the plain model.
        """
        if is_sharded(self.model):
            sharded = WholeState({plain_name(n): value for n, value in plain_tensors(self.model)}, merging(self.model))
            _check_same_tensors(sharded.shapes(), self.tensors)
            return sharded
        # By the parameter itself, since a layer that the model has in several places has several names.
        merged = {id(parameter): to_host(value) for parameter, value in merged_weights(self.model)}
        state = {plain_name(name): merged.get(id(value), value.detach()) for name, value in plain_tensors(self.model)}
        _check_same_tensors({name: value.shape for name, value in state.items()}, self.tensors)
        return state

    @torch.no_grad()
    def is_lost_in(self, merged: Mapping[str, Tensor]) -> bool:
        """Return whether the adapter is not zero but `merged`, the weights with it folded in, are the model's own."""
        layers = list(adapted_weights(self.model))
        if not any(
            bool(layer.lora_A[ADAPTER].weight.any() and layer.lora_B[ADAPTER].weight.any()) for layer, _ in layers
        ):
            return False
        names = {id(p): plain_name(name) for name, p in self.model.named_parameters(remove_duplicate=False)}
        return all(_is_same(merged[names[id(weight)]], ordinary_weight(self.model, weight)) for _, weight in layers)

    @torch.no_grad()
    def scale(self, factor: float) -> None:
        """Multiply the adapter's update of the weights by `factor`; -1 subtracts the learned change (task vectors)."""
        for name, parameter in self.peft.named_parameters():
            if ".lora_B." in name:
                parameter.mul_(factor)

    def set_scale(self, scale: float) -> None:
        """Multiply the adapter's alpha by `scale`, of the alpha it was trained with; 1 is as trained."""
        set_alpha(self.peft, self.alpha * scale)

    @torch.no_grad()
    def merge_ties(self, states: Collection[dict[str, Tensor]], *, density: float) -> None:
        """Become the TIES merge of several trained states of this adapter, each of weight 1 (PEFT's, on A and B apart).

        `density` is the share of each state's entries that is kept (Yadav et al. 2023, arXiv 2306.01708).
        """
        factor = math.sqrt(abs(self._scaling))
        for name, parameter in self.trained().items():
            values = [state[name].to(parameter.device) for state in states]
            merged = ties(values, torch.full((len(values),), factor, device=parameter.device), density)
            # The factor is in both halves now, and the layer multiplies by it again.
            parameter.copy_(merged / factor)

    @property
    def _scaling(self) -> float:
        layer, _ = next(adapted_weights(self.model))
        return float(layer.scaling[ADAPTER])

    def save(self, folder: Path) -> None:
        """Write the adapter in PEFT's layout, whole or not at all; a folder that the model came from is not named.

        Raises:
            OutputError: it cannot be written.
        """
        try:
            with replace_folder(folder) as temporary:
                self.peft.save_pretrained(str(temporary))
                (temporary / CARD_FILE).unlink(missing_ok=True)  # a form to fill in
                _tidy_config(temporary / "adapter_config.json")
        except SafetensorError as error:
            raise OutputError(f"{folder}: the adapter cannot be written ({error}); is the disk full?") from error


def _is_same(merged: Tensor, weight: Tensor) -> bool:
    return torch.equal(merged.to(weight.device), weight)


def set_alpha(peft: PeftModel, alpha: float) -> None:
    """Give an adapter's layers and its configuration another alpha."""
    config: Any = peft.peft_config[ADAPTER]
    config.lora_alpha = alpha
    for layer in (module for module in peft.modules() if isinstance(module, LoraLayer)):
        layer.lora_alpha[ADAPTER] = alpha
        rank = layer.r[ADAPTER]
        layer.scaling[ADAPTER] = alpha / (math.sqrt(rank) if config.use_rslora else rank)


def _tidy_config(path: Path) -> None:
    """Put what PEFT writes from sets in order, and leave out the folder of the base model, which is its owner's."""
    config = {name: _in_order(value) for name, value in json.loads(path.read_text(encoding="utf-8")).items()}
    if not is_hub_id(str(config.get("base_model_name_or_path"))):
        config["base_model_name_or_path"] = None
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _in_order(value: object) -> object:
    return sorted(value, key=str) if isinstance(value, list) else value


def attach_lora(model: PreTrainedModel, settings: LoraSettings, *, seed: int) -> LoraAdapter:
    """Freeze `model` and put a LoRA adapter into it: A Xavier-normal from `seed`, B zero, both float32.

    With B = 0 the adapted model equals the model.

    Raises:
        ModelError: the model has no layer of the wanted names, or one that cannot carry an adapter.
    """
    targets = find_targets(
        model,
        settings.targets,
        layers=settings.layers,
        takes_parameters=not settings.decomposed and not settings.dropout,
    )
    tensors = plain_shapes(model)
    modules, parameters = peft_names(model, targets)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # any number serves
        target_modules=list(targets.modules),
        target_parameters=list(targets.experts) or None,
        lora_dropout=settings.dropout,
        bias="none",
        task_type="CAUSAL_LM",
        use_rslora=settings.rank_stabilised,
        use_dora=settings.decomposed,
        fan_in_fan_out=_are_transposed(model, targets),
    )
    with warnings.catch_warnings(), _names_as_given():
        # PEFT 0.21 asks transformers 5.23 by a name that the latter renamed.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        try:
            peft = get_peft_model(model, config)
        except ValueError as error:
            raise ModelError(
                f"target_modules: {', '.join(targets.names)} of {type(model).__name__} cannot carry an adapter "
                f"({error})"
            ) from error
    _share_adapters(peft)
    if widening_of(model):
        keep_fused(peft)
    # What is saved names the layers as PEFT finds them in the plain model.
    saved: Any = peft.peft_config[ADAPTER]
    saved.target_modules, saved.target_parameters = modules, parameters or None
    saved.fan_in_fan_out |= any(layer.is_transposed for layer in quantised_layers(model).values())
    named = dict(peft.named_parameters())
    for name, value in first_values(peft, rank=settings.rank, seed=seed, init=settings.init).items():
        named[name].data = value
    for layer in (module for module in peft.modules() if isinstance(module, LoraLinear)):
        layer.lora_dropout.eval()  # on in steps alone
        if settings.decomposed:
            _set_magnitude(layer)
    return LoraAdapter(
        peft=peft,
        model=cast("PreTrainedModel", peft.get_base_model()),
        targets=targets.names,
        tensors=tensors,
        alpha=settings.alpha,
        notes=targets.notes,
    )


def _share_adapters(model: nn.Module) -> None:
    """Give layers of one weight (Zamba's attention block in several places) one adapter: they are merged into one."""
    first: dict[int, Any] = {}
    for layer in (module for module in model.modules() if isinstance(module, LoraLinear)):
        same: Any = first.setdefault(id(layer.get_base_layer().weight), layer)
        for kind in ("lora_A", "lora_B", "lora_magnitude_vector"):
            if same is not layer and ADAPTER in getattr(layer, kind):
                getattr(layer, kind)[ADAPTER] = getattr(same, kind)[ADAPTER]


@torch.no_grad()
def _set_magnitude(layer: LoraLinear) -> None:
    """Begin with the lengths of the weights' rows in float32: PEFT rounds them to the weights' own dtype."""
    base: Any = layer.get_base_layer()
    vector: Any = layer.lora_magnitude_vector
    vector[ADAPTER].weight.copy_(
        torch.linalg.norm(exact_matrix(whole(base.weight)), dim=0 if isinstance(base, Conv1D) else 1)
    )


def plain_name(name: str) -> str:
    """Return the name that a weight of an adapted model has in the plain one."""
    return re.sub(r"(\.base_layer)+\.", ".", name)


@contextmanager
def _names_as_given() -> Iterator[None]:
    """Keep PEFT from taking layers called gate_proj, up_proj or down_proj for the experts of older checkpoints."""
    where = "peft.utils.transformers_weight_conversion.convert_peft_config_for_transformers"
    with patch(where, lambda *_, **__: None):
        yield


def _check_same_tensors(found: Mapping[str, torch.Size], expected: Mapping[str, torch.Size]) -> None:
    different = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
    if different:
        raise ModelError(
            f"the merged model would not have the tensors of the original one: {', '.join(different[:3])} differ; the "
            f"checkpoints are unchanged"
        )


def _are_transposed(model: PreTrainedModel, targets: Targets) -> bool:
    """GPT-2's Conv1D keeps its weight as (in, out), unless it is quantised."""
    return any(isinstance(model.get_submodule(path), Conv1D) for path in targets.modules)


@torch.no_grad()
def first_values(adapter: LoraAdapter | PeftModel, *, rank: int, seed: int, init: Init = "xavier") -> dict[str, Tensor]:
    """Return what an adapter in the same layers begins with, by name: A (rank, D) drawn by `init`, B (O, rank) zero.

    For experts A is (E rank, D) and B (O, rank E), each expert's part as a layer's own would be. float32, where the
    parameters of `adapter` lie, which may be of another rank.
    """
    peft = adapter.peft if isinstance(adapter, LoraAdapter) else adapter
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, Tensor] = {}
    experts = {name: m.num_experts for name, m in peft.named_modules() if isinstance(m, ParamWrapper)}
    for name, parameter in sorted(peft.named_parameters()):
        num_experts = experts.get(name.rsplit(".lora_", 1)[0], 1)
        if ".lora_A." in name:
            size = (rank, parameter.shape[1])
            values = torch.cat([_drawn(size, init, generator) for _ in range(num_experts)])
            found[name] = values.to(parameter.device)
        elif ".lora_B." in name:
            size = (parameter.shape[0], rank * num_experts)
            found[name] = torch.zeros(size, dtype=torch.float32, device=parameter.device)
    return found


def _drawn(size: tuple[int, int], init: Init, generator: torch.Generator) -> Tensor:
    values = torch.empty(size, dtype=torch.float32)
    if init == "xavier":
        return nn.init.xavier_normal_(values, generator=generator)
    return nn.init.kaiming_uniform_(values, a=math.sqrt(5), generator=generator)
