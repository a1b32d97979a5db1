"""Causal language models and tokenizers from a local folder or the Hugging Face hub, and back to a folder."""

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from letheon.devices import check_device, choose_device, use_device
from letheon.errors import LetheonError, ModelError, OutputError
from letheon.model.checkpoint_files import (
    WHOLE_NOT_ADAPTER,
    check_checkpoint,
    check_source,
    float32_weights,
    not_had,
    stored_dtype_of,
)
from letheon.model.companions import OF_MODEL, OF_TOKENIZER, copy_companions, fetch_companions, local_folder
from letheon.model.precision import Asked, choose_precision
from letheon.model.quantised import Quantise, check_installed, how_to_quantise, is_quantised_checkpoint
from letheon.model.quantised_layers import dequantise_in_products, make_ordinary, quantised_layers
from letheon.model.saved import check_saved
from letheon.model.shard_loading import Found, load_sharded
from letheon.model.shard_saving import write_sharded
from letheon.model.sharding import is_sharded
from letheon.model.unexpected import check_complete, check_unexpected
from letheon.model.widening import as_stored, computes_wide, saved_dtype, widen, widen_wholly, widening_of
from letheon.settings import EvaluateSettings, UnlearnSettings
from letheon.storage.files import replace_folder

_EXPECTED = "expected a causal language model with safetensors weights that transformers can load"
_NAME_TOKENIZER = "name the one the model was trained with by --tokenizer FOLDER_OR_HUB_ID"

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready to use, its tokenizer, and where it came from."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    source: str


def load_model(
    source: str,
    *,
    dtype: Asked = "float32",
    tokenizer: PreTrainedTokenizerBase | str | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
    quantise: Quantise | None = None,
    dequantise: bool = False,
    shard: bool = False,
    note: Callable[[str], None] = _logger.warning,
) -> LoadedModel:
    """Load a causal language model in evaluation mode and its tokenizer.

    `source` is a local folder or a hub id, `tokenizer` another one where the checkpoint carries none, or a tokenizer
    itself, `device` one of torch's names or None for the best there is. Only safetensors are read. `note` is told which
    parts of the checkpoint are left out. A checkpoint without 16-bit weights is loaded in float32 where "widened" is
    asked. `quantise` is how the linear layers of an ordinary checkpoint are quantised; `dtype` is that of everything
    else. `dequantise` makes an ordinary model of a quantised checkpoint. `shard` leaves a share of the weights in each
    of the processes that work together (sharding.py), which all call this.

    Raises:
        ModelError: folder, weights or tokenizer are missing or broken, the vocabularies do not fit, the weights are
            not all there or not all finite, or more than the configuration has a place for.
        SettingsError: there is no such device.
    """
    check_device(device)
    check_checkpoint(source)
    loaded_tokenizer = (
        load_tokenizer(tokenizer or source, trust_remote_code=trust_remote_code)
        if tokenizer is None or isinstance(tokenizer, str)
        else tokenizer
    )
    config = load_config(source, trust_remote_code=trust_remote_code)
    check_vocabulary(config, loaded_tokenizer, source=source)
    stored = stored_dtype(source, config)
    precision = choose_precision(stored, asked=dtype, device=device, is_sharded=shard).precision
    loaded_in = {"float32": torch.float32, "bfloat16": torch.bfloat16, "widened": stored}[precision]
    if shard:
        model = _load_sharded(source, config, loaded_in, device, trust_remote_code=trust_remote_code, note=note)
        return LoadedModel(model=model, tokenizer=loaded_tokenizer, source=source)
    is_quantised = quantise is not None or is_quantised_checkpoint(config)
    how = _quantised_loading(quantise, device) if is_quantised else {}
    model = _load_whole(source, loaded_in, how, trust_remote_code=trust_remote_code, note=note)
    if is_quantised:
        dequantise_in_products(model)
        if dequantise:
            make_ordinary(model)
    if precision == "widened":
        widen(model, stored, exact=_exact_weights(source))
        if not computes_wide(model):
            widen_wholly(model)
            note(f"{type(model).__name__} uses its matrices in its own way, so all weights are float32 in memory")
    if not is_quantised:  # it lies where it was quantised
        move_model(model, device)
    return LoadedModel(model=model, tokenizer=loaded_tokenizer, source=source)


def load_model_of(
    settings: UnlearnSettings | EvaluateSettings,
    *,
    tokenizer: PreTrainedTokenizerBase | str | None,
    shard: bool = False,
    note: Callable[[str], None] = _logger.warning,
) -> LoadedModel:
    """Load the model of a command as its settings say (see `load_model`); `shard` if its processes share weights."""
    return load_model(
        settings.model,
        dtype=settings.dtype,
        tokenizer=tokenizer,
        device=settings.device,
        trust_remote_code=settings.trust_remote_code,
        quantise=settings.quantise,
        shard=shard,
        note=note,
    )


def _load_whole(
    source: str, dtype: torch.dtype, how: dict[str, Any], *, trust_remote_code: bool, note: Callable[[str], None]
) -> PreTrainedModel:
    """The model as transformers loads it, once it is seen that its weights are all there and finite."""
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            ignore_mismatched_sizes=True,  # reported below, by name
            output_loading_info=True,
            **how,
        )
    except Exception as error:
        raise _failure(source, f"{_EXPECTED}, got {_reason(error)}", error) from error
    model: PreTrainedModel = loaded[0]
    loading: dict[str, Any] = loaded[1]
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ModelError(f"{source}: {WHOLE_NOT_ADAPTER}")  # of a hub id this is known only now
    check_complete(model, missing=loading["missing_keys"], mismatched=loading["mismatched_keys"], source=source)
    left_out = check_unexpected(model, loading["unexpected_keys"], source=source)
    if left_out is not None:
        note(left_out)
    _check_finite(model, source=source)
    fetch_companions(source)
    model.eval()
    return model


def _load_sharded(
    source: str,
    config: PreTrainedConfig,
    dtype: torch.dtype,
    device: str | None,
    *,
    trust_remote_code: bool,
    note: Callable[[str], None],
) -> PreTrainedModel:
    def check(model: PreTrainedModel, found: Found) -> None:
        """Refuse weights that are not the model's."""
        missing, unexpected, mismatched = found
        if missing and unexpected:
            raise ModelError(
                f"{source}: shard: expected weights by the names that {type(model).__name__} has, such as "
                f"{min(missing)}, got {min(unexpected)}; transformers converts such checkpoints as it loads them, so "
                f"leave out --shard"
            )
        check_complete(model, missing=missing, mismatched=mismatched, source=source)
        left_out = check_unexpected(model, unexpected, source=source)
        if left_out is not None:
            note(left_out)

    chosen = choose_device(device)
    use_device(chosen)
    try:
        model = load_sharded(
            source, config, dtype=dtype, device=chosen, trust_remote_code=trust_remote_code, check=check
        )
    except LetheonError:
        raise
    except Exception as error:
        raise _failure(source, f"{_EXPECTED}, got {_reason(error)}", error) from error
    fetch_companions(source)
    model.eval()
    return model


def _quantised_loading(quantise: Quantise | None, device: str | None) -> dict[str, Any]:
    """What transformers is told besides: how to quantise, and where."""
    check_installed()
    how = {} if quantise is None else {"quantization_config": how_to_quantise(quantise)}
    return {"device_map": {"": device or ("cuda" if torch.cuda.is_available() else "cpu")}, **how}


def stored_dtype(source: str, config: PreTrainedConfig) -> torch.dtype:
    """Return the dtype of most of a checkpoint's weights; of a hub id, what its configuration says.

    Raises:
        ModelError: its weights cannot be read.
    """
    if Path(source).is_dir():
        return stored_dtype_of(Path(source))
    found = config.get_text_config().dtype
    return found if isinstance(found, torch.dtype) else torch.float32


def _exact_weights(source: str) -> Iterator[tuple[str, Tensor]]:
    """Weights that a checkpoint has in float32 beside its 16-bit ones."""
    folder = local_folder(source)
    return iter(()) if folder is None else float32_weights(folder)


def load_tokenizer(source: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load a tokenizer from a folder or hub id.

    Raises:
        ModelError: there is none, or it cannot be read.
    """
    check_source(source)
    if Path(source).is_file():
        raise ModelError(f"{source}: expected the folder of a tokenizer, got a file; give the folder that contains it")
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise _failure(
            source, f"no tokenizer could be loaded from here ({_reason(error)}); {_NAME_TOKENIZER}", error
        ) from error
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise ModelError(f"{source}: no tokenizer here: tokenizer.json is missing; {_NAME_TOKENIZER}")
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"{source}: the tokenizer has no end-of-sequence token, which generation needs to stop; set eos_token in "
            f"its tokenizer_config.json to the token that ended the model's texts in training{_specials(tokenizer)}, "
            "or give another tokenizer by --tokenizer"
        )
    return tokenizer


def _specials(tokenizer: PreTrainedTokenizerBase) -> str:
    """Name the tokens that may be meant as the end of a text: special ones, by role or in the vocabulary."""
    names = {str(token) for token in tokenizer.added_tokens_decoder.values()} | set(tokenizer.all_special_tokens)
    return f" (it has {', '.join(sorted(names)[:5])})" if names else ""


def load_config(source: str, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """Return the configuration of a checkpoint without its weights.

    Raises:
        ModelError: it cannot be read.
    """
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    except Exception as error:
        advice = "give the folder or hub id of a model that this version of transformers knows"
        raise _failure(
            source, f"the model's configuration cannot be read ({_reason(error)}); {advice}", error
        ) from error
    return config


def check_vocabulary(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, *, source: str) -> None:
    """Refuse a tokenizer with ids that a model of this configuration has no embedding for.

    Raises:
        ModelError: the vocabularies do not fit.
    """
    available = getattr(config.get_text_config(), "vocab_size", None)
    highest = max(tokenizer.get_vocab().values(), default=-1)
    if available is not None and highest >= available:
        raise ModelError(
            f"{source}: the tokenizer has token ids up to {highest}, the model embeddings for {available} ids only; "
            "give the tokenizer that the model was trained with (--tokenizer)"
        )


@torch.no_grad()
def _check_finite(model: PreTrainedModel, *, source: str) -> None:
    """Refuse weights with NaN or infinite values."""
    for name, tensor in model.state_dict().items():
        # The sum is finite where all values are, and takes no memory of the tensor's size.
        if (
            tensor.is_floating_point()
            and not tensor.sum(dtype=torch.float32).isfinite()
            and not tensor.isfinite().all()
        ):
            raise ModelError(
                f"{source}: the weights of {name} are not all finite (NaN or infinity); the checkpoint is broken, "
                f"give an earlier one"
            )


def move_model(model: nn.Module, device: str | None) -> None:
    """Bring `model` to a device; None takes a GPU where there is one."""
    chosen = choose_device(device)
    use_device(chosen)
    model.to(chosen)


def context_length(config: PreTrainedConfig) -> int | None:
    """Return how many positions a model of this configuration can see, None where it names no limit."""
    config = config.get_text_config()
    found = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    return None if found is None or found < 0 else int(found)  # XLNet's is -1


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Write model and tokenizer in the Hugging Face layout to `folder`, replacing what lies there only when complete.

    `state` gives the weights to write, by the plain model's names, instead of the model's own. The small files beside
    the weights that model and tokenizer came from go with them (companions.py).

    Raises:
        ModelError: what would be written does not hold the tensors of the model.
        OutputError: the folder cannot be written; what lay there before is as it was.
    """
    try:
        with replace_folder(folder) as temporary:
            if is_sharded(model):
                write_sharded(model, state, temporary)
            else:
                _writable(model).save_pretrained(temporary, state_dict=_to_write(model, state))
                _name_dtype(model, temporary / "config.json")
            tokenizer.save_pretrained(temporary)
            copy_companions(model.name_or_path or "", temporary, OF_MODEL)
            copy_companions(tokenizer.name_or_path or "", temporary, OF_TOKENIZER)
            check_saved(temporary, model)
    except (RuntimeError, SafetensorError) as error:
        raise OutputError(f"{folder}: the model cannot be written ({_reason(error)}); is the disk full?") from error


def _writable(model: PreTrainedModel) -> PreTrainedModel:
    """The model that transformers is asked to write with the weights given: it writes no quantised one as ordinary."""
    if not quantised_layers(model):
        return model
    config = deepcopy(model.config)
    vars(config).pop("quantization_config", None)
    with torch.device("meta"):
        ordinary: PreTrainedModel = type(model)._from_config(config, dtype=saved_dtype(model))
    ordinary.generation_config = model.generation_config
    return ordinary


def _to_write(model: PreTrainedModel, state: Mapping[str, Tensor] | None) -> dict[str, Tensor] | None:
    """The weights to write, as the checkpoint stores them; None for the model's own as they are."""
    if widening_of(model) is None:
        return None if state is None else dict(state)
    return dict(as_stored(model, state or model.state_dict()))


def _name_dtype(model: PreTrainedModel, path: Path) -> None:
    """Say in a saved configuration which dtype the weights have, where the model in memory has several."""
    widened = widening_of(model)
    if widened is not None:
        config = {**json.loads(path.read_text(encoding="utf-8")), "dtype": str(widened.stored).removeprefix("torch.")}
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _failure(source: str, what: str, error: Exception) -> ModelError:
    absent = None if Path(source).exists() else not_had(source, error)
    if absent is not None:
        return absent
    if "trust_remote_code" in str(error):
        return ModelError(
            f"{source}: contains Python code, which runs only with your consent; read the code and, if you trust it, "
            f"set --trust-remote-code"
        )
    return ModelError(f"{source}: {what}")


def _reason(error: Exception) -> str:
    """What a library says, in its first line."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
