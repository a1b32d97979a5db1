"""Architectures in small, as a table: what sets each apart, and the path that its engine must take."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import transformers as hf
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from letheon.engine.engine import Path
from letheon.model.targets import SEED_TARGETS

WINDOW = 5
"""Tokens, fewer than most of the sequences have (4 to 41)."""
CANNOT_BE_REPLACED = "cannot be replaced"


@dataclass(frozen=True, slots=True)
class Case:
    """An architecture in small, and what is expected of it."""

    config_class: type[PreTrainedConfig]
    extra: Mapping[str, Any]
    """What its configuration has beyond the common sizes, or in place of them."""
    targets: tuple[str, ...] = SEED_TARGETS
    """The layers that q_proj and v_proj stand for."""
    path: Path = "packed"
    reason: str = ""
    """Part of the engine's note where it is not packed."""

    def config(self, vocab_size: int, **changes: Any) -> PreTrainedConfig:
        sizes = {
            "vocab_size": vocab_size,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 128,
            "bos_token_id": None,
            "eos_token_id": 0,
            "pad_token_id": 1,
        }
        wanted = {**sizes, **self.extra, **changes}
        return self.config_class(**{name: value for name, value in wanted.items() if value is not ...})


# Names that a configuration class does not know, or derives from others.
_NEOX = {"num_key_value_heads": ...}
_OLD = {"num_key_value_heads": ..., "intermediate_size": ..., "max_position_embeddings": ...}
# Where a forward is not the same twice, dropout is on that should be off.
_GPT2 = {**_OLD, "n_positions": 128, "attn_pdrop": 0.5, "embd_pdrop": 0.5, "resid_pdrop": 0.5}
_GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 24, "sliding_window": WINDOW}
ALTERNATING = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}

CASES = {
    "olmo": Case(hf.OlmoConfig, {"clip_qkv": 1.0}),
    "olmo-2": Case(hf.Olmo2Config, {}),
    "olmo-3": Case(hf.Olmo3Config, {"num_hidden_layers": 4, "sliding_window": WINDOW, "layer_types": ALTERNATING}),
    "llama-3": Case(hf.LlamaConfig, {"rope_scaling": LLAMA3_ROPE}),
    "llama-tied": Case(hf.LlamaConfig, {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    "qwen-2.5": Case(hf.Qwen2Config, {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}),
    "qwen-3": Case(hf.Qwen3Config, {"head_dim": 16}),
    "mistral": Case(hf.MistralConfig, {"sliding_window": WINDOW, "head_dim": 8}),
    "gemma": Case(hf.GemmaConfig, {"head_dim": 16}),
    "gemma-2": Case(hf.Gemma2Config, {**_GEMMA, "attn_logit_softcapping": 1.0, "final_logit_softcapping": 2.0}),
    "gemma-3": Case(hf.Gemma3TextConfig, {**_GEMMA, "num_hidden_layers": 4, "layer_types": ALTERNATING}),
    "pythia": Case(hf.GPTNeoXConfig, {**_NEOX, "attention_dropout": 0.5, "hidden_dropout": 0.5}, ("query_key_value",)),
    "gpt-2": Case(hf.GPT2Config, _GPT2, ("c_attn",)),
    "gpt-2-scaled": Case(hf.GPT2Config, {**_GPT2, "scale_attn_by_inverse_layer_idx": True}, ("c_attn",)),
    "phi-2": Case(hf.PhiConfig, {"attention_dropout": 0.5, "embd_pdrop": 0.5, "resid_pdrop": 0.5}),
    "phi-qk-norm": Case(hf.PhiConfig, {"qk_layernorm": True}),
    "phi-3": Case(hf.Phi3Config, {"sliding_window": WINDOW}, ("qkv_proj",)),
    "cohere": Case(hf.CohereConfig, {"logit_scale": 0.3}),
    "cohere-2": Case(hf.Cohere2Config, {"num_hidden_layers": 4, "sliding_window": WINDOW, "logit_scale": 2.0}),
    "granite": Case(
        hf.GraniteConfig,
        {"logits_scaling": 0.5, "attention_multiplier": 0.2, "residual_multiplier": 0.5, "embedding_multiplier": 3.0},
    ),
    # Its configuration refuses None for the ids of special tokens.
    "modernbert": Case(
        hf.ModernBertDecoderConfig,
        {"num_key_value_heads": ..., "bos_token_id": 0, "local_attention": 2 * WINDOW, "tie_word_embeddings": False},
        path="logits",
        reason="differs from the model's own logits",  # a layer stands between the trunk and the last matrix
    ),
    "llama-4": Case(
        hf.Llama4TextConfig,
        {"head_dim": 8, "num_local_experts": 2, "intermediate_size_mlp": 48, "attention_chunk_size": WINDOW},
        path="padded",
        reason="differs from the model's own logits",  # packed attention knows nothing of chunks
    ),
    "apertus": Case(hf.ApertusConfig, {}),  # its activations have parameters of no dimension
    "gpt-oss": Case(hf.GptOssConfig, {"head_dim": 8, "num_local_experts": 4, "sliding_window": WINDOW}),
    "stablelm": Case(hf.StableLmConfig, {}, path="padded", reason="not told where sequences end"),
    "gpt-neo": Case(
        hf.GPTNeoConfig,
        {
            **_OLD,
            "num_hidden_layers": ...,
            "num_layers": 2,
            "num_attention_heads": ...,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": WINDOW,
        },
        path="padded",
        reason=CANNOT_BE_REPLACED,
    ),
    "bloom": Case(hf.BloomConfig, _OLD, ("query_key_value",), path="padded", reason=CANNOT_BE_REPLACED),
    "falcon": Case(hf.FalconConfig, _OLD, ("query_key_value",), path="padded", reason=CANNOT_BE_REPLACED),
    "recurrent-gemma": Case(
        hf.RecurrentGemmaConfig,
        {"attention_window_size": 64, "logits_soft_cap": 1.0, "num_hidden_layers": 3},
        path="logits",
        reason="carries state over",
    ),
}

_ALIKE = {*("olmo-2", "qwen-2.5", "qwen-3", "mistral", "gemma", "gemma-3", "phi-2", "phi-3", "cohere-2", "falcon")}
"""Those whose blocks, windows, heads and path another one of the table has too."""

ARCHITECTURES = [pytest.param(name, marks=pytest.mark.slow) if name in _ALIKE else name for name in CASES]
"""The table's names as parameters of a test; those that are like another one are slow tests."""


def random_model(config: PreTrainedConfig) -> PreTrainedModel:
    """A model whose predictions differ from token to token, with every weight away from its initial value."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator) * 0.15
            parameter.copy_(noise if parameter.ndim > 1 else parameter + noise)
    model.eval()
    return model
