"""Which layers an adapter goes into: from names to whole paths, less what PEFT cannot adapt."""

import inspect
import re
from collections.abc import Collection, Hashable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraModel
from peft.utils.transformers_weight_conversion import (
    convert_peft_adapter_state_dict_for_transformers,
    convert_peft_config_for_transformers,
)
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from letheon.errors import ModelError, nearest
from letheon.model.codes import is_quantised, matrix_shape
from letheon.model.layers import names_in_layers, trunk_of
from letheon.model.lowrank import LINEAR_FORWARDS

SEED_TARGETS = ("q_proj", "v_proj")
ALL_LINEAR = "all-linear"

FUSED_TARGETS: dict[str, tuple[str, ...]] = {
    "q_proj": ("query_key_value", "c_attn", "qkv_proj", "Wqkv", "q", "query", "wq"),
    "k_proj": ("query_key_value", "c_attn", "qkv_proj", "Wqkv", "k", "key", "wk"),
    "v_proj": ("query_key_value", "c_attn", "qkv_proj", "Wqkv", "v", "value", "wv"),
    "o_proj": ("dense", "c_proj", "out_proj", "o", "wo"),
}
"""What other architectures call the projections, or the fused layer that holds them, in order of preference."""

EXPERT_MATRICES = ("gate_up_proj", "gate_proj", "up_proj", "down_proj")
"""What transformers calls the matrices of all experts of a layer, each one parameter (experts, rows, columns)."""

_MOST_UNSAID = 0.01
"""Share of the layer weights up to which `all-linear` may leave some frozen without a word."""


@dataclass(frozen=True, slots=True)
class Targets:
    """The layers of one model that carry an adapter, by their whole names."""

    modules: tuple[str, ...]
    """Linear layers."""
    experts: tuple[str, ...] = ()
    """Parameters that hold a matrix of every routed expert."""
    notes: tuple[str, ...] = ()
    """What was left out, in words."""

    @property
    def names(self) -> tuple[str, ...]:
        """The layers' own names, without those of the modules around them."""
        return tuple(dict.fromkeys(map(_last, (*self.modules, *self.experts))))


def find_targets(
    model: PreTrainedModel, wanted: Collection[str], *, layers: str | None = None, takes_parameters: bool = True
) -> Targets:
    """Return the layers to adapt.

    `wanted` holds names, or ALL_LINEAR alone. A name is a layer's own ("q_proj"), the end of its path ("mlp.c_proj")
    or its whole path; it fits every layer that ends so, in the text part of a model that also sees or hears unless it
    is a path that leads elsewhere. Other architectures' names stand in for q_proj and the like. ALL_LINEAR is every
    linear layer of the decoder and the matrices of its routed experts, less the head and what PEFT cannot adapt.
    `layers` keeps to a span of decoder layers. `takes_parameters` is false where the adapter is of a kind (DoRA,
    dropout) that PEFT cannot put on a parameter.

    Raises:
        ModelError: a name fits no layer, or only layers that cannot carry an adapter.
        SettingsError: `layers` names no layer.
    """
    is_all = tuple(wanted) == (ALL_LINEAR,)
    decoder = _layers_of(model, inside=trunk_of(model))
    chosen = list(decoder) if is_all else _named(model, wanted, decoder)
    if layers is not None:
        inside = names_in_layers(model, layers)
        chosen = [path for path in chosen if path.startswith(inside)]
        if not chosen:
            raise ModelError(f"layers: none of {', '.join(wanted)} is inside the selected layers")
    refused = _refused(model, chosen, takes_parameters=takes_parameters)
    if refused and not is_all:
        raise ModelError(
            f"target_modules: {_listed(refused)} of {type(model).__name__} cannot carry an adapter "
            f"({next(iter(refused.values()))}); leave them out"
        )
    kept = [path for path in chosen if path not in refused]
    if not kept:
        raise ModelError(f"target_modules: no layer of {type(model).__name__} can carry an adapter")
    experts = tuple(path for path in kept if _is_expert_matrix(model, path))
    modules = tuple(path for path in kept if path not in set(experts))
    notes = _notes(model, kept, refused) if is_all and layers is None else ()
    return Targets(modules, experts, notes)


def narrowest(model: PreTrainedModel, targets: Targets) -> tuple[str, int]:
    """Return the name of the matrix with the smallest side among those that carry an adapter, and that side."""
    paths = {**{f"{name}.weight": name for name in targets.modules}, **{name: name for name in targets.experts}}
    sides = {name: min(matrix_shape(model.get_parameter(path))[-2:]) for path, name in paths.items()}
    name = min(sides, key=sides.__getitem__)
    return name, sides[name]


def peft_names(model: PreTrainedModel, targets: Targets) -> tuple[list[str], list[str]]:
    """Return `target_modules` and `target_parameters` by which PEFT finds exactly these layers in the plain model.

    They are the ends of paths, as short as fit no other layer. Linear layers called as the experts of older
    transformers were are given by their weight: PEFT would take their name for the experts'.
    """
    renamed = renamed_by_peft(model, targets.modules)
    modules = [path for path in targets.modules if path not in renamed]
    parameters = [*targets.experts, *(f"{path}.weight" for path in targets.modules if path in renamed)]
    return (
        _shortest(modules, [name for name, _ in model.named_modules()]),
        _shortest(parameters, [name for name, _ in model.named_parameters()]),
    )


def renamed_by_peft(model: PreTrainedModel, paths: Collection[str]) -> set[str]:
    """Return those of `paths` that PEFT, asked for them as modules, takes for the experts of older checkpoints.

    In a mixture of experts it turns any layer called gate_proj, up_proj or down_proj into the fused parameters, also
    where a dense or shared block has a layer of that name.
    """
    renamed = {name for name in {_last(path) for path in paths} if _is_renamed(model, name)}
    return {path for path in paths if _last(path) in renamed}


def _is_renamed(model: PreTrainedModel, name: str) -> bool:
    config = LoraConfig(target_modules=[name])
    try:
        convert_peft_config_for_transformers(config, model, None)
    except ValueError:
        return True  # it wants the other half of a fused matrix beside this one
    return set(config.target_modules or ()) != {name}


def _layers_of(model: PreTrainedModel, *, inside: nn.Module) -> dict[str, nn.Module]:
    """The linear layers and expert matrices in a part of the model by whole name; for a matrix, the module it is in."""
    parts, head = {id(module) for module in inside.modules()}, model.get_output_embeddings()
    found: dict[str, nn.Module] = {}
    for path, module in model.named_modules():
        if id(module) not in parts or module is head:
            continue
        if isinstance(module, (nn.Linear, Conv1D)) and _is_linear(module):
            found[path] = module
        else:
            found.update({f"{path}.{name}": module for name in _expert_matrices(module)})
    return found


def _is_linear(module: nn.Module) -> bool:
    """Whether a linear layer, maybe of a class of the model's own, gives W x + b: some routers are derived from one."""
    if type(module).forward in LINEAR_FORWARDS:
        return True
    base: Any = module
    states = torch.linspace(-1, 2, 3 * base.weight.shape[1]).to(base.weight.device, base.weight.dtype)
    states = states.reshape(1, 3, -1)
    try:
        with torch.no_grad():
            found, expected = module(states), linear(states, base.weight, base.bias)
    except (RuntimeError, TypeError, AttributeError, ValueError, IndexError):
        return False
    if not isinstance(found, Tensor) or found.shape != expected.shape:
        return False
    return found.is_meta or torch.allclose(found, expected, rtol=0.05, atol=0.05)


def _is_read_past(model: PreTrainedModel, path: str) -> bool:
    """Whether the code of the module around a layer computes with the layer's weight and not with the layer."""
    parent, _, name = path.rpartition(".")
    code = _source(cast("Hashable", type(model.get_submodule(parent))))
    return re.search(rf"\bself\.{re.escape(name)}\.weight\b(?!\[|\.(dtype|device|shape|data))", code) is not None


@cache
def _source(kind: Hashable) -> str:
    """The code of a class, "" where there is none."""
    try:
        return inspect.getsource(cast("type[nn.Module]", kind))
    except (OSError, TypeError):
        return ""


def _expert_matrices(module: nn.Module) -> Iterator[str]:
    for name, parameter in module.named_parameters(recurse=False):
        if name in EXPERT_MATRICES and parameter.ndim == 3:
            yield name


def _is_expert_matrix(model: PreTrainedModel, path: str) -> bool:
    parent, _, name = path.rpartition(".")
    return name in _expert_matrices(model.get_submodule(parent))


def _named(model: PreTrainedModel, wanted: Collection[str], decoder: Collection[str]) -> list[str]:
    """The paths that the wanted names fit, in their order."""
    everywhere: Collection[str] | None = None
    found: dict[str, None] = {}
    for name in wanted:
        fitting = _fitting(name, decoder)
        if not fitting and "." in name:
            everywhere = everywhere or _layers_of(model, inside=model)
            fitting = _fitting(name, everywhere)
        if not fitting:
            fitting = next(filter(None, (_in_attention(_fitting(n, decoder)) for n in FUSED_TARGETS.get(name, ()))), [])
        if not fitting:
            available = {_last(path) for path in decoder}
            raise ModelError(
                f"target_modules: {type(model).__name__} has no linear layer '{name}'{nearest(name, available)}; "
                f"it has {', '.join(sorted(available))} (or say all-linear)"
            )
        found.update(dict.fromkeys(fitting))
    return list(found)


def _fitting(name: str, paths: Collection[str]) -> list[str]:
    return [path for path in paths if path == name or path.endswith(f".{name}")]


def _in_attention(paths: list[str]) -> list[str]:
    """Those in attention blocks, where there are any: GPT-2 calls the last layer of its MLP c_proj too."""
    inside = [path for path in paths if re.search("attn|attention", path.rpartition(".")[0], re.IGNORECASE)]
    return inside or paths


def _refused(model: PreTrainedModel, paths: Collection[str], *, takes_parameters: bool) -> dict[str, str]:
    """Those of `paths` that PEFT cannot adapt, with the reason."""
    config, refused = LoraConfig(target_modules=[]), dict[str, str]()
    for path in paths:
        try:
            LoraModel._check_target_module_compatiblity(cast("Any", None), config, model, _last(path))
            is_refused = _is_read_past(model, path)
        except ValueError:
            is_refused = True
        if is_refused:
            refused[path] = "the model uses its weight directly, without the adapter"
    lost = _lost_by_peft(model, paths)
    refused.update(dict.fromkeys(lost, "PEFT loads its adapter under another name"))
    by_name = renamed_by_peft(model, [path for path in paths if _holds_codes(model, path)])
    refused.update(dict.fromkeys(by_name, "PEFT adapts it as a parameter, and it is quantised"))
    if not takes_parameters:
        by_parameter = {path for path in paths if _is_expert_matrix(model, path)} | renamed_by_peft(model, paths)
        reason = "PEFT adapts it as a parameter of a mixture of experts, without DoRA or dropout"
        refused.update({path: reason for path in paths if path in by_parameter})
    return {path: refused[path] for path in paths if path in refused}


def _holds_codes(model: PreTrainedModel, path: str) -> bool:
    return not _is_expert_matrix(model, path) and is_quantised(model.get_parameter(f"{path}.weight"))


def _lost_by_peft(model: PreTrainedModel, paths: Collection[str]) -> set[str]:
    """Those of `paths` whose adapter PEFT, when it loads one, would take for that of another layer."""
    keys = {f"base_model.model.{path}.lora_A.weight": path for path in paths if not _is_expert_matrix(model, path)}
    config, empty = LoraConfig(target_modules=[]), torch.empty(1, 1, device="meta")
    kept = convert_peft_adapter_state_dict_for_transformers(model, config, dict.fromkeys(keys, empty))
    return {path for key, path in keys.items() if key not in kept}


def _notes(model: PreTrainedModel, kept: Collection[str], refused: dict[str, str]) -> tuple[str, ...]:
    notes = []
    if refused:
        reasons = "; ".join(dict.fromkeys(refused.values()))
        notes.append(f"all-linear leaves out {_listed(refused)} ({reasons})")
    share, names = _frozen(model, kept)
    if share > _MOST_UNSAID:
        notes.append(
            f"{share:.0%} of the layer weights stay frozen, because these layers have no adapter: {_listed(names)}"
        )
    return tuple(notes)


def _frozen(model: PreTrainedModel, kept: Collection[str]) -> tuple[float, list[str]]:
    """The share of the decoder's matrices, embeddings and head left out, that have no adapter, and their names."""
    adapted = {*kept, *(f"{path}.weight" for path in kept)}
    embeddings = (*(m for m in model.modules() if isinstance(m, nn.Embedding)), model.get_output_embeddings())
    passed_over = {id(p) for module in embeddings if module is not None for p in module.parameters()}
    trunk = {id(parameter) for parameter in trunk_of(model).parameters()} - passed_over
    sizes = {n: matrix_shape(p).numel() for n, p in model.named_parameters() if id(p) in trunk and p.ndim > 1}
    frozen = {name: size for name, size in sizes.items() if name not in adapted}
    return sum(frozen.values()) / max(sum(sizes.values()), 1), sorted(frozen, key=lambda name: -frozen[name])


def _listed(paths: Collection[str]) -> str:
    """Paths as a reader wants them: each once, the numbers of layers left out."""
    short = (".".join(part for part in path.split(".") if not part.isdigit()) for path in paths)
    names = list(dict.fromkeys(path.removesuffix(".weight").split("layers.")[-1] for path in short))
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _shortest(paths: Collection[str], known: Collection[str]) -> list[str]:
    """The shortest ends of `paths` that fit no other name known."""
    wanted, owners = set(paths), dict[str, set[str]]()
    for name in known:
        parts = name.split(".")
        for start in range(len(parts)):
            owners.setdefault(".".join(parts[start:]), set()).add(name)
    found: dict[str, None] = {}
    for path in paths:
        parts = path.split(".")
        ends = (".".join(parts[start:]) for start in reversed(range(len(parts))) if not parts[start].isdigit())
        found[next((end for end in ends if owners[end] <= wanted), path)] = None
    return sorted(found)


def _last(path: str) -> str:
    return path.rpartition(".")[-1]
