"""The models that are measured: OLMo in four sizes and SmolLM2, random weights, and what arithmetic each needs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, OlmoConfig, PreTrainedConfig, PreTrainedModel

TARGET = Path("targets") / "lume-val-6m-general"


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of an OLMo model, or of a Llama if it shares keys and values among heads."""

    name: str
    width: int
    num_layers: int
    num_heads: int
    intermediate: int
    vocab_size: int
    is_tied: bool
    clip_qkv: float | None = None
    context: int = 4096
    num_key_value_heads: int | None = None
    """None for OLMo, which has one for each head."""

    @property
    def key_value_width(self) -> int:
        """Columns of the key projection, and of the value projection."""
        return self.width * (self.num_key_value_heads or self.num_heads) // self.num_heads

    @property
    def num_trunk_weights(self) -> int:
        """Weights of the matrices that each token is multiplied with below the head."""
        attention = 2 * self.width**2 + 2 * self.width * self.key_value_width
        return self.num_layers * (attention + 3 * self.width * self.intermediate)

    @property
    def num_weights(self) -> int:
        """All weights; OLMo's norms have none."""
        norms = 0 if self.num_key_value_heads is None else (2 * self.num_layers + 1) * self.width
        return self.num_trunk_weights + norms + self.vocab_size * self.width * (1 if self.is_tied else 2)

    @property
    def products(self) -> dict[str, tuple[int, int]]:
        """Inner size and columns of the frozen matrices' products."""
        return {
            "attention": (self.width, self.width),
            "MLP up": (self.width, self.intermediate),
            "MLP down": (self.intermediate, self.width),
        }

    def step_flops(self, num_tokens: int, num_answers: int) -> "Flops":
        """Return the least that a step must compute: a forward, and a backward through activations only."""
        return Flops(4 * self.num_trunk_weights * num_tokens, 4 * self.vocab_size * self.width * num_answers)

    def plain_flops(self, num_padded: int) -> "Flops":
        """Return what the plain step computes: two forwards and a backward, padding and prompts included."""
        return Flops(6 * self.num_trunk_weights * num_padded, 6 * self.vocab_size * self.width * num_padded)

    def reference_flops(self, num_tokens: int, num_answers: int) -> "Flops":
        """Return the least that the reference pass over the same tokens must compute: a forward."""
        return Flops(2 * self.num_trunk_weights * num_tokens, 2 * self.vocab_size * self.width * num_answers)


@dataclass(frozen=True, slots=True)
class Flops:
    """Floating-point operations of frozen matrices; attention scores and what is per element are left out."""

    trunk: float
    head: float

    @property
    def total(self) -> float:
        """All of them."""
        return self.trunk + self.head

    def seconds(self, *, trunk_rate: float, head_rate: float) -> float:
        """Return the time at these rates, FLOP/s."""
        return self.trunk / trunk_rate + self.head / head_rate


_TARGET_6M = Shape("6m", width=256, num_layers=4, num_heads=4, intermediate=1024, vocab_size=8192, is_tied=True)

SHAPES = {
    shape.name: shape
    for shape in (
        _TARGET_6M,
        # HuggingFaceTB/SmolLM2-135M
        Shape("smollm2", width=576, num_layers=30, num_heads=9, intermediate=1536, vocab_size=49152, is_tied=True,
              num_key_value_heads=3),
        Shape("50m", width=512, num_layers=6, num_heads=8, intermediate=2048, vocab_size=50304, is_tied=True),
        # allenai/OLMo-1B-0724-hf: 114 tensors, head and embedding apart.
        Shape("1b", width=2048, num_layers=16, num_heads=16, intermediate=8192, vocab_size=50304, is_tied=False,
              clip_qkv=8.0),
        # allenai/OLMo-7B-0724-hf
        Shape("7b", width=4096, num_layers=32, num_heads=32, intermediate=11008, vocab_size=50304, is_tied=False,
              clip_qkv=8.0),
    )
}  # fmt: skip


def shape_of(name: str, data: Path | None) -> Shape:
    """Return a shape by name; the 6M target's sizes are read from its configuration where `data` holds it."""
    if name != _TARGET_6M.name or data is None:
        return SHAPES[name]
    config = OlmoConfig.from_pretrained(str(data / TARGET))
    return Shape(
        name,
        width=config.hidden_size,
        num_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        intermediate=config.intermediate_size,
        vocab_size=config.vocab_size,
        is_tied=config.tie_word_embeddings,
        clip_qkv=config.clip_qkv,
        context=config.max_position_embeddings,
    )


def make_model(shape: Shape, *, dtype: torch.dtype, device: torch.device, seed: int = 0) -> PreTrainedModel:
    """Return the model with random weights, made in `dtype` where they are to stay, in evaluation mode."""
    torch.manual_seed(seed)
    with device:
        model: PreTrainedModel = AutoModelForCausalLM.from_config(_config(shape), dtype=dtype)
    model.eval()
    return model


def _config(shape: Shape) -> PreTrainedConfig:
    sizes: dict[str, Any] = {
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.width,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "max_position_embeddings": shape.context,
        "tie_word_embeddings": shape.is_tied,
        "eos_token_id": 0,
        "pad_token_id": 1,
    }
    if shape.num_key_value_heads is not None:
        return LlamaConfig(num_key_value_heads=shape.num_key_value_heads, **sizes)
    return OlmoConfig(num_key_value_heads=shape.num_heads, clip_qkv=shape.clip_qkv, **sizes)
