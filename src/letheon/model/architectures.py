"""New small models with random weights, and the tokenizer that goes with them.

These are ordinary Hugging Face models of published architectures, only small: each can be saved, loaded, adapted and
unlearned like its full-sized relative.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    OlmoConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from letheon.errors import ModelError, SettingsError, nearest

END_OF_TEXT = "<|endoftext|>"
"""End of sequence in tokenizers trained here, id 0."""
PADDING = "<|pad|>"
"""Padding in tokenizers trained here, id 1."""

_CONFIG_CLASSES: dict[str, type[PreTrainedConfig]] = {
    "olmo": OlmoConfig,
    "llama": LlamaConfig,
    "gpt-neox": GPTNeoXConfig,
    "qwen": Qwen2Config,
    "gemma": GemmaConfig,
    "gemma2": Gemma2Config,
    "gpt2": GPT2Config,
}

ARCHITECTURES = tuple(_CONFIG_CLASSES)
"""Names that `new_model` knows; the first is the default of `letheon memorize`."""

_VOCABULARY_MULTIPLE = 64
_MIN_VOCABULARY = 258


@dataclass(frozen=True, slots=True)
class _Shape:
    vocab_size: int
    width: int
    num_layers: int
    num_heads: int
    intermediate: int
    context: int
    bos: int | None
    eos: int | None
    pad: int | None

    @property
    def head_width(self) -> int:
        return self.width // self.num_heads


def new_model(
    architecture: str,
    *,
    tokenizer: PreTrainedTokenizerBase,
    width: int = 256,
    num_layers: int = 4,
    num_heads: int = 4,
    intermediate: int | None = None,
    context: int = 1024,
    seed: int,
) -> PreTrainedModel:
    """Return a causal language model of `architecture` with random float32 weights drawn from `seed`.

    The vocabulary is the tokenizer's, rounded up to a multiple of 64; the entries beyond the tokenizer stand for no
    token. `intermediate` (default 4 * width) is the MLP's width and `context` the longest sequence in tokens. There is
    no dropout. The head is tied to the embedding except in gpt-neox, whose published models do not tie it. PyTorch's
    global random state is left as it was.

    Raises:
        ModelError: no such architecture.
        SettingsError: the sizes do not fit together.
    """
    if architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ModelError(f"unknown architecture {architecture!r}{nearest(architecture, ARCHITECTURES)}; known: {known}")
    _check_sizes(width=width, num_layers=num_layers, num_heads=num_heads, context=context)
    shape = _Shape(
        vocab_size=_round_up(len(tokenizer), _VOCABULARY_MULTIPLE),
        width=width,
        num_layers=num_layers,
        num_heads=num_heads,
        intermediate=4 * width if intermediate is None else intermediate,
        context=context,
        bos=tokenizer.bos_token_id,
        eos=tokenizer.eos_token_id,
        pad=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(_config(architecture, shape), dtype=torch.float32)
    model.eval()
    return model


def train_tokenizer(texts: Iterable[str], *, vocab_size: int = 8192) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer learnt from `texts`, with at most `vocab_size` entries.

    Entry 0 is <|endoftext|> (end of sequence), entry 1 <|pad|>; there is no beginning-of-sequence token and nothing is
    added to a text. All 256 bytes are entries, so every text comes back unchanged, and no text at all gives the bytes
    alone. Digits are tokens of their own, so that a number never seen before looks like one that was. The same texts
    in the same order give the same tokenizer.

    Raises:
        SettingsError: `vocab_size` leaves no room for the 256 bytes and the two special tokens.
    """
    if vocab_size < _MIN_VOCABULARY:
        raise SettingsError(
            f"vocab_size: expected at least {_MIN_VOCABULARY} (256 bytes and 2 special tokens), got {vocab_size}"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT, PADDING],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        pad_token=PADDING,
        clean_up_tokenization_spaces=False,
    )


def _check_sizes(*, width: int, num_layers: int, num_heads: int, context: int) -> None:
    if min(width, num_layers, num_heads, context) < 1:
        raise SettingsError(
            "expected positive sizes for a new model, got "
            f"width {width}, num_layers {num_layers}, num_heads {num_heads}, context {context}"
        )
    # A quarter of each head is rotated in gpt-neox, and a rotation needs pairs.
    if width % (8 * num_heads):
        raise SettingsError(
            f"width: expected a multiple of 8 * num_heads = {8 * num_heads}, got {width}; use "
            f"{_round_up(width, 8 * num_heads)}"
        )


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _config(architecture: str, shape: _Shape) -> PreTrainedConfig:
    if architecture == "gpt2":
        return _gpt2(shape)
    sizes: dict[str, Any] = {
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.width,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "max_position_embeddings": shape.context,
        "bos_token_id": shape.bos,
        "eos_token_id": shape.eos,
        "pad_token_id": shape.pad,
        "tie_word_embeddings": architecture != "gpt-neox",
    }
    # Some classes default to the head counts and head widths of their 7B model, whatever the other sizes are.
    if architecture != "gpt-neox":
        sizes["num_key_value_heads"] = shape.num_heads
    if architecture in ("llama", "gemma", "gemma2"):
        sizes["head_dim"] = shape.head_width
    if architecture == "gemma2":
        sizes |= {"query_pre_attn_scalar": shape.head_width, "sliding_window": shape.context}
    return _CONFIG_CLASSES[architecture](**sizes)


def _gpt2(shape: _Shape) -> GPT2Config:
    return GPT2Config(
        vocab_size=shape.vocab_size,
        n_embd=shape.width,
        n_inner=shape.intermediate,
        n_layer=shape.num_layers,
        n_head=shape.num_heads,
        n_positions=shape.context,
        attn_pdrop=0.0,
        embd_pdrop=0.0,
        resid_pdrop=0.0,
        bos_token_id=shape.bos,
        eos_token_id=shape.eos,
        pad_token_id=shape.pad,
    )
