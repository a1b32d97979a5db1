"""Quantised checkpoints: refused where weights are to be changed, with the command that makes an ordinary one of them.

An adapter could be trained over quantised weights, but not be folded into them without being rounded away.
"""

import inspect
from typing import Any

from transformers import PreTrainedConfig
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

from letheon.errors import ModelError
from letheon.model.checkpoint_files import conversion


def check_not_quantised(config: PreTrainedConfig, *, source: str) -> None:
    """Refuse a checkpoint whose weights are quantised, before any of them is loaded.

    Raises:
        ModelError: they are; says how to dequantise them.
    """
    found = _quantisation(config)
    if found is None:
        return
    kind, load = _described(found)
    way_out = (
        f"dequantise it first: {conversion(source, load)}"
        if load
        else "transformers cannot dequantise it, so give the checkpoint that it was quantised from"
    )
    raise ModelError(
        f"{source}: expected weights in float32, bfloat16 or float16, got quantised ones ({kind}), which a trained "
        f"adapter cannot be merged into; {way_out}"
    )


def _quantisation(config: PreTrainedConfig) -> dict[str, Any] | None:
    for part in (config, config.get_text_config()):
        found: Any = getattr(part, "quantization_config", None)
        if found:
            return dict(found if isinstance(found, dict) else found.to_dict())
    return None


def _described(found: dict[str, Any]) -> tuple[str, str | None]:
    """What kind of quantisation it is, and the call that loads it dequantised, if there is one."""
    method = str(getattr(found.get("quant_method"), "value", found.get("quant_method")) or "bitsandbytes")
    if method.startswith("bitsandbytes"):
        return f"bitsandbytes, {4 if found.get('load_in_4bit') else 8} bit", "(d).dequantize()"
    kind = AUTO_QUANTIZATION_CONFIG_MAPPING.get(method)
    if kind is None or "dequantize" not in inspect.signature(kind).parameters:
        return method, None
    return method, f"(d, quantization_config=t.{kind.__name__}(dequantize=True))"
