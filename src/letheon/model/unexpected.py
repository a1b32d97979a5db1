"""Weights that a checkpoint lacks, or that its model does not have: a mistake in config.json, or parts not used here.

Transformers makes up the former and drops the latter, both in silence. What would lie inside a part that the model has
(a layer more, a bias) means that config.json is not the weights' own, and the model not the one that was trained. A
part of its own (a value head, a vision tower, layers that predict several tokens ahead) can be left away, which is
said.
"""

import re
from collections.abc import Collection

from torch import nn
from transformers import PreTrainedModel

from letheon.errors import ModelError
from letheon.model.layers import decoder_layers

_HARMLESS = re.compile(r"inv_freq$|masked_bias$|attn\.bias$|attention\.bias$|(cos|sin)_cached$|position_ids$")
"""Buffers that older versions of transformers stored, and that follow from the configuration."""
_AHEAD = ("num_nextn_predict_layers", "num_mtp_layers", "mtp_num_hidden_layers")
"""How many layers behind the last one predict further tokens ahead."""
_MOST_NAMED = 3


def check_complete(
    model: PreTrainedModel,
    *,
    missing: Collection[str],
    mismatched: Collection[tuple[str, Collection[int], Collection[int]]],
    source: str,
) -> None:
    """Refuse a model some of whose weights the files do not have, or have in another shape.

    Raises:
        ModelError: naming them.
    """
    if mismatched:
        name, there, wanted = min(mismatched)
        raise ModelError(
            f"{source}: the weights of {name} are {_size(there)}, the configuration says {_size(wanted)}; config.json "
            f"and weights belong to different models; download the checkpoint again"
        )
    if missing:
        names = sorted(missing)
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise ModelError(
            f"{source}: the weights lack {', '.join(names[:3])}{more} of {type(model).__name__}, so they would be "
            f"random; give a checkpoint of the whole language model, including its head"
        )


def _size(shape: Collection[int]) -> str:
    return " by ".join(map(str, shape))


def check_unexpected(model: PreTrainedModel, unexpected: Collection[str], *, source: str) -> str | None:
    """Return a note on the parts of a checkpoint that are not loaded; None where nothing is left out.

    Raises:
        ModelError: weights are left out that would lie inside a part that the model has.
    """
    left_out = sorted(name for name in unexpected if not _HARMLESS.search(name))
    containers = _containers(model)
    num_ahead = _num_layers_ahead(model)
    apart: dict[str, None] = {}
    for name in left_out:
        part, layers = _nearest_part(model, name)
        if layers is not None and len(layers) <= _index(name, part) < len(layers) + num_ahead:
            apart[f"{part}.{_index(name, part)}"] = None
        elif part in containers:
            apart[_first_below(name, part)] = None
        else:
            raise ModelError(f"{source}: {_what(model, name, part, layers, left_out)}")
    if not apart:
        return None
    more = f" and {len(apart) - _MOST_NAMED} more" if len(apart) > _MOST_NAMED else ""
    parts = ", ".join(list(apart)[:_MOST_NAMED])
    return (
        f"{source}: the weights also hold {parts}{more}, which are not part of {type(model).__name__} and are left out"
    )


def _what(model: PreTrainedModel, name: str, part: str, layers: nn.ModuleList | None, left_out: Collection[str]) -> str:
    advice = "config.json and weights belong to different models; download the checkpoint again"
    if layers is None:
        return f"the weights hold {name}, which {type(model).__name__} does not have in this configuration; {advice}"
    held = 1 + max(_index(other, part) for other in left_out if _nearest_part(model, other)[0] == part)
    return f"the weights hold {held} layers in {part}, the configuration says {len(layers)}; {advice}"


def _nearest_part(model: PreTrainedModel, name: str) -> tuple[str, nn.ModuleList | None]:
    """The innermost module of the model on the way to `name`, and itself where it is a list that ends before it.

    A checkpoint of the trunk alone leaves out the trunk's own name.
    """
    prefix = model.base_model_prefix
    base, parts = getattr(model, prefix, None), name.split(".")
    if prefix and isinstance(base, nn.Module) and parts[0] != prefix and hasattr(base, parts[0]):
        parts = [prefix, *parts]
    module: nn.Module = model
    depth = 0
    children = dict(module.named_children())
    while depth < len(parts) - 1 and parts[depth] in children:
        module = children[parts[depth]]
        children = dict(module.named_children())
        depth += 1
    is_list = isinstance(module, nn.ModuleList) and parts[depth].isdigit()
    return ".".join(parts[:depth]), module if is_list and isinstance(module, nn.ModuleList) else None


def _index(name: str, part: str) -> int:
    """The number behind the name of a list of modules, which a checkpoint of the trunk alone has without its prefix."""
    tail = part.rsplit(".", 1)[-1]
    found = re.search(rf"(?:^|\.){re.escape(tail)}\.(\d+)\.", name)
    return int(found[1]) if found else 0


def _containers(model: PreTrainedModel) -> set[str]:
    """The modules around the decoder layers: other parts may stand beside these."""
    try:
        layers = decoder_layers(model)
    except ModelError:
        return {"", model.base_model_prefix}
    path = next((name for name, module in model.named_modules() if module is layers), "")
    steps = path.split(".")
    return {".".join(steps[:end]) for end in range(len(steps))}


def _num_layers_ahead(model: PreTrainedModel) -> int:
    config = model.config.get_text_config()
    return max(int(getattr(config, name, None) or 0) for name in _AHEAD)


def _first_below(name: str, part: str) -> str:
    """The name of what stands beside the decoder layers, whose parts are all left out together."""
    rest = name.removeprefix(f"{part}.") if part else name
    return f"{part}.{rest.split('.')[0]}" if part and rest != name else rest.split(".")[0]
