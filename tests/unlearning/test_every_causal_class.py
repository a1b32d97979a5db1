"""Every causal language model that the installed transformers knows, in small: it is unlearned, or refused by name."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from architecture_table import random_model
from letheon.data.rows import Row
from letheon.errors import LetheonError
from letheon.model.loading import load_model
from letheon.settings import UnlearnSettings
from letheon.unlearning.reading import plan
from running import run, short_run

pytestmark = pytest.mark.slow

MOST_PARAMETERS = 20_000_000
"""Of a model in small; one that is larger has sizes of names that are not below."""
CONFIGS = {config.__name__: config for config in MODEL_FOR_CAUSAL_LM_MAPPING}

_FOUR = (
    "num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads mamba_n_heads "
    "mamba_num_heads linear_num_value_heads num_experts n_routed_experts num_local_experts moe_num_experts rotary_dim"
)
_TWO = (
    "num_hidden_layers n_layer num_layers n_layers decoder_layers encoder_layers num_key_value_heads num_kv_heads "
    "num_experts_per_tok moe_topk moe_k mamba_expand linear_num_key_heads index_n_heads"
)
_WIDTH = "hidden_size d_model n_embd dim_model embedding_size emb_dim word_embed_proj_dim lru_width"
_INNER = "intermediate_size n_inner ffn_dim decoder_ffn_dim encoder_ffn_dim dff d_inner dim_ff"
_EIGHT = (
    "head_dim d_head dim_head qk_nope_head_dim qk_rope_head_dim v_head_dim state_size ssm_state_size mamba_d_state "
    "mamba_head_dim linear_key_head_dim linear_value_head_dim hidden_size_per_layer_input index_topk"
)
_SIXTEEN = (
    "moe_intermediate_size shared_expert_intermediate_size moe_shared_expert_intermediate_size q_lora_rank "
    "kv_lora_rank qk_head_dim index_head_dim mamba_d_head sliding_window attention_window_size chunk_size "
    "mamba_chunk_size"
)
_ONE = "n_group topk_group first_k_dense_replace n_groups mamba_n_groups pad_token_id"
_NONE = "num_kv_shared_layers num_nextn_predict_layers bos_token_id eos_token_id"
_CONTEXT = "max_position_embeddings n_positions n_ctx max_seq_len"
_VOCABULARY = "vocab_size vocab_size_per_layer_input"
SIZES = {
    name: size
    for names, size in (
        (_FOUR, 4), (_TWO, 2), (_WIDTH, 32), (_INNER, 48), (_EIGHT, 8), (_SIXTEEN, 16), (_ONE, 1), (_NONE, 0),
        (_CONTEXT, 128), (_VOCABULARY, 448),
    )
    for name in names.split()
}  # fmt: skip
_LATENT = {"num_key_value_heads": 4}
SPECIAL: dict[str, Mapping[str, Any]] = {
    **dict.fromkeys(("AXK1Config", "AXK2Config", "DeepseekV2Config", "DeepseekV3Config", "DeepseekV32Config"), _LATENT),
    **dict.fromkeys(("Glm4MoeLiteConfig", "GlmMoeDsaConfig", "MiniCPM3Config", "YoutuConfig"), _LATENT),
    "BertConfig": {"is_decoder": True},
    "RobertaConfig": {"is_decoder": True},
    "GPTNeoConfig": {"attention_types": [[["global", "local"], 1]], "window_size": 8},
    "Lfm2MoeConfig": {"layer_types": ["conv", "full_attention"]},
    "Mamba2Config": {"num_heads": 8, "head_dim": 8},
    "XLMConfig": {"causal": True},
    "ZayaConfig": {"num_experts_per_tok": 1},
}
"""Where the common sizes do not fit together."""


def small_config(kind: type[PreTrainedConfig]) -> PreTrainedConfig:
    """The configuration with every size that is known by its name made small, its parts for text too."""
    names = set(inspect.signature(kind.__init__).parameters) | set(kind().to_dict())
    names -= set(kind.attribute_map or {})
    parts = {
        name: small_config(part).to_dict()
        for name, part in (kind.sub_configs or {}).items()
        if part is not AutoConfig and ("text" in name or "decoder" in name)
    }
    sizes = {name: size for name, size in SIZES.items() if name in names}
    return kind(**{**sizes, **parts, **SPECIAL.get(kind.__name__, {})})


def small_model(kind: type[PreTrainedConfig]) -> PreTrainedModel:
    """A random model, or the test is skipped where transformers makes none that is small of these sizes."""
    try:
        config = small_config(kind)
        with torch.device("meta"):
            num = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    except Exception as error:
        pytest.skip(f"no small one can be made ({type(error).__name__}: {error})")
    if num > MOST_PARAMETERS:
        pytest.skip(f"no small one can be made ({num:,} parameters)")
    return random_model(config)


@pytest.mark.parametrize("name", CONFIGS)
def test_it_is_unlearned_or_refused_by_name(
    name: str, tmp_path: Path, rows: list[Row], tokenizer: PreTrainedTokenizerBase
) -> None:
    given = {**short_run(tmp_path, rows, small_model(CONFIGS[name]), tokenizer), "epochs": 1}
    try:
        report = run(given)
    except LetheonError as error:
        pytest.skip(f"refused: {error}")
    assert report.reason == "finished"
    load_model(str(report.model))
    assert plan(UnlearnSettings.of({**given, "out": tmp_path / "planned"})).plan.num_parameters > 0
