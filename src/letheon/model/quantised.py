"""Quantised weights: which checkpoints and settings can be used, and how bitsandbytes is asked for them.

An adapter is trained over quantised weights and merged into the dequantised ones. Where weights themselves are to be
changed, and for other kinds of quantisation, the way out is a command that makes an ordinary checkpoint.
"""

import inspect
from importlib.util import find_spec
from typing import Any, Literal

import torch
from transformers import BitsAndBytesConfig, PreTrainedConfig
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

from letheon.errors import MissingExtraError, ModelError, SettingsError
from letheon.model.checkpoint_files import conversion

Quantise = Literal["nf4", "int8"]

_PACKAGE = "bitsandbytes"
_DEQUANTISED = "(d).dequantize()"


def check_not_quantised(config: PreTrainedConfig, *, source: str) -> None:
    """Refuse a checkpoint whose weights are quantised, before any of them is loaded.

    Raises:
        ModelError: they are; says how to dequantise them.
    """
    found = _quantisation(config)
    if found is not None:
        raise ModelError(_refusal(found, source=source))


def check_quantisation(config: PreTrainedConfig, *, source: str, quantise: Quantise | None, adapt: str) -> None:
    """Refuse what cannot be trained over quantised weights, before any are loaded.

    Raises:
        ModelError: the checkpoint is quantised by something else than bitsandbytes; says how to dequantise it.
        SettingsError: its weights themselves are to be trained, or it is to be quantised a second time.
        MissingExtraError: bitsandbytes is not installed.
    """
    found = _quantisation(config)
    if found is None and quantise is None:
        return
    if found is not None and not _is_of_bitsandbytes(found):
        raise ModelError(_refusal(found, source=source))
    if adapt != "lora":
        ordinary = "leave out --quantise" if found is None else f"dequantise them: {conversion(source, _DEQUANTISED)}"
        raise SettingsError(
            f"adapt: quantised weights cannot be trained themselves, only an adapter beside them; use --adapt lora, or "
            f"{ordinary}"
        )
    check_loadable(config, source=source, quantise=quantise)


def check_loadable(config: PreTrainedConfig, *, source: str, quantise: Quantise | None) -> None:
    """Refuse to quantise a checkpoint a second time, and to load a quantised one without bitsandbytes.

    Raises:
        MissingExtraError: bitsandbytes is not installed.
        SettingsError: the checkpoint is quantised already.
    """
    found = _quantisation(config)
    if found is not None and quantise is not None:
        raise SettingsError(
            f"quantise: expected a checkpoint with ordinary weights, but those of {source} are quantised already "
            f"({_described(found)[0]}); leave out --quantise"
        )
    if quantise is not None or is_quantised_checkpoint(config):
        check_installed()


def check_installed() -> None:
    """Refuse quantised weights where bitsandbytes is missing.

    Raises:
        MissingExtraError: it is.
    """
    if not is_installed():
        raise MissingExtraError("quantised weights", "quantised")


def is_installed() -> bool:
    """Return whether bitsandbytes is there."""
    return find_spec(_PACKAGE) is not None


def is_quantised_checkpoint(config: PreTrainedConfig) -> bool:
    """Return whether bitsandbytes has quantised a checkpoint of this configuration."""
    found = _quantisation(config)
    return found is not None and _is_of_bitsandbytes(found)


def described(config: PreTrainedConfig, quantise: Quantise | None) -> str:
    """Return how a model's layers are quantised, as the end of a sentence; "" for an ordinary one."""
    found = _quantisation(config)
    if quantise is None and (found is None or not _is_of_bitsandbytes(found)):
        return ""
    kind = quantise if found is None else _described(found)[0]
    return f"; linear layers quantised ({kind}) and dequantised for each product"


def quantisation_of(config: PreTrainedConfig, quantise: Quantise | None) -> BitsAndBytesConfig | None:
    """Return how a model's layers are quantised, by its checkpoint or on loading; None for an ordinary model."""
    if quantise is not None:
        return how_to_quantise(quantise)
    found = _quantisation(config)
    if found is None or not _is_of_bitsandbytes(found):
        return None
    how: BitsAndBytesConfig = BitsAndBytesConfig.from_dict(found)
    return how


def how_to_quantise(kind: Quantise) -> BitsAndBytesConfig:
    """Return what transformers is asked for to quantise while it loads; the head stays as it is."""
    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)


def _refusal(found: dict[str, Any], *, source: str) -> str:
    kind, load = _described(found)
    way_out = (
        f"dequantise it first: {conversion(source, load)}"
        if load
        else "transformers cannot dequantise it, so give the checkpoint that it was quantised from"
    )
    return (
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
    method = _method(found)
    if _is_of_bitsandbytes(found):
        return f"bitsandbytes, {4 if found.get('load_in_4bit') else 8} bit", _DEQUANTISED
    kind = AUTO_QUANTIZATION_CONFIG_MAPPING.get(method)
    if kind is None or "dequantize" not in inspect.signature(kind).parameters:
        return method, None
    return method, f"(d, quantization_config=t.{kind.__name__}(dequantize=True))"


def _method(found: dict[str, Any]) -> str:
    return str(getattr(found.get("quant_method"), "value", found.get("quant_method")) or _PACKAGE)


def _is_of_bitsandbytes(found: dict[str, Any]) -> bool:
    return _method(found).startswith(_PACKAGE)
