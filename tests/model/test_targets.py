"""From names of layers to whole paths: what fits, what is left out, and what PEFT makes of it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from architecture_table import random_model
from letheon.errors import ModelError, SettingsError
from letheon.model.adapters import LoraAdapter, LoraSettings, attach_lora
from letheon.model.loading import save_model
from letheon.model.targets import ALL_LINEAR, Targets, find_targets, narrowest, peft_names
from small import tiny_model

SIZES: dict[str, Any] = {"vocab_size": 400, "hidden_size": 32, "num_hidden_layers": 2, "eos_token_id": 0}
ATTENTION: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 48}
ZAMBA: dict[str, Any] = {
    "layer_types": ["mamba", "hybrid"], "hybrid_layer_ids": [1], "n_mamba_heads": 8, "mamba_d_state": 8,
    "num_mem_blocks": 1, "chunk_size": 8,
    "use_shared_attention_adapter": True, "adapter_rank": 4, "use_mem_rope": True,
}  # fmt: skip
GEMMA: dict[str, Any] = {
    "num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2, "num_kv_shared_layers": 2,
    "intermediate_size": [48] * 4, "activation_sparsity_pattern": [0.0] * 4, "hidden_size_per_layer_input": 8,
    "laurel_rank": 4, "head_dim": 8, "vocab_size_per_layer_input": 400, "pad_token_id": 1,
}  # fmt: skip
MAMBA_2: dict[str, Any] = {"num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": 1, "chunk_size": 8}
CONFIGS = {
    "gpt2": hf.GPT2Config(**SIZES, n_head=4, bos_token_id=0),
    "ctrl": hf.CTRLConfig(vocab_size=400, n_embd=32, n_layer=2, n_head=4, dff=48, n_positions=128),
    "gemma-3n": hf.Gemma3nTextConfig(**{**SIZES, **ATTENTION, **GEMMA}),
    "zamba-2": hf.Zamba2Config(**{**SIZES, **ATTENTION, **ZAMBA}),
    "mamba": hf.MambaConfig(**SIZES, state_size=4),
    "mamba-2": hf.Mamba2Config(**SIZES, **MAMBA_2),
    "llama": hf.LlamaConfig(**SIZES, **ATTENTION),
}
UNREACHED = {"gemma-3n": "altup.correction_coefs", "zamba-2": "mamba.out_proj", "mamba": "mixer.out_proj"}


def made(name: str) -> PreTrainedModel:
    return random_model(CONFIGS[name])


def adapted(model: PreTrainedModel, *targets: str, layers: str | None = None) -> LoraAdapter:
    """The model with an adapter that changes it."""
    found = attach_lora(model, LoraSettings(rank=3, targets=targets or (ALL_LINEAR,), layers=layers), seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return found


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    found: Tensor = model(input_ids=torch.arange(5, 25)[None], use_cache=False).logits
    return found


def paths(model: nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(module, LoraLinear)}


@pytest.mark.parametrize("name", CONFIGS)
def test_all_linear_is_every_linear_layer_and_the_saved_adapter_is_as_exact(
    name: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    save_model(made(name), tokenizer, tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
    head = model.get_output_embeddings()
    linear = {n for n, m in model.named_modules() if isinstance(m, (nn.Linear, hf.pytorch_utils.Conv1D))}
    linear -= {n for n, m in model.named_modules() if m is head}
    found = adapted(model)
    left_out = linear - paths(model)
    assert {path.split(".")[-1] for path in left_out} <= {"out_proj", "x_proj", "dt_proj", "correction_coefs"}
    assert bool(left_out) == any("leaves out" in note for note in found.notes)
    if name in UNREACHED:
        assert UNREACHED[name] in found.notes[0]
    expected = logits(model)
    save_model(model, tokenizer, tmp_path / "merged", state=found.merged_state())
    assert torch.allclose(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged")), expected, atol=1e-4)
    found.save(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "adapter")
    assert paths(loaded.get_base_model()) == paths(model)
    assert torch.allclose(logits(loaded.eval()), expected, atol=1e-4)


def test_layers_that_share_a_weight_share_an_adapter(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    # Zamba-2 has one attention block in several places, each with small linear layers of its own.
    kinds = ["hybrid", "mamba", "hybrid"]
    sizes = {"num_hidden_layers": 3, "layer_types": kinds, "hybrid_layer_ids": [0, 2], "use_cache": False}
    save_model(random_model(hf.Zamba2Config(**{**SIZES, **ATTENTION, **ZAMBA, **sizes})), tokenizer, tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
    found = adapted(model)
    expected = logits(model)
    save_model(model, tokenizer, tmp_path / "merged", state=found.merged_state())
    assert torch.allclose(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged")), expected, atol=1e-4)
    found.save(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "adapter")
    assert torch.allclose(logits(loaded.eval()), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (("o_proj",), ["attn.c_proj"]),
        (("c_proj",), ["attn.c_proj", "mlp.c_proj"]),
        (("mlp.c_proj",), ["mlp.c_proj"]),
        (("q_proj", "v_proj"), ["attn.c_attn"]),
        (("transformer.h.1.mlp.c_fc",), ["mlp.c_fc"]),
    ],
)
def test_a_name_fits_ends_of_paths(wanted: tuple[str, ...], expected: list[str]) -> None:
    found = find_targets(made("gpt2"), wanted).modules
    first = "transformer.h.1." if wanted[0].startswith("transformer") else "transformer.h.0."
    assert sorted(path.removeprefix(first) for path in found if path.startswith(first)) == expected
    assert len(found) == len(expected) * (1 if wanted[0].startswith("transformer") else 2)


@pytest.mark.parametrize(
    ("wanted", "layers", "expected"),
    [
        ((ALL_LINEAR,), None, ["c_attn", "c_fc", "c_proj"]),
        (("o_proj",), None, ["attn.c_proj"]),
        ((ALL_LINEAR,), "1:", [f"h.1.{name}" for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")]),
    ],
)
def test_the_saved_names_are_as_short_as_fit_no_other_layer(
    wanted: tuple[str, ...], layers: str | None, expected: list[str], tmp_path: Path
) -> None:
    found = adapted(made("gpt2"), *wanted, layers=layers)
    found.save(tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert sorted(config["target_modules"]) == expected
    assert config["target_parameters"] is None


def test_a_list_of_numbers_is_named_with_what_it_is_in() -> None:
    model = made("zamba-2")
    modules, _ = peft_names(model, find_targets(model, (ALL_LINEAR,)))
    assert not any(name[0].isdigit() for name in modules)


@pytest.mark.parametrize(
    ("name", "wanted", "message"),
    [
        ("mamba", ("out_proj",), r"mixer.out_proj of MambaForCausalLM cannot carry an adapter \(the model uses its"),
        ("mamba-2", ("in_proj", "out_proj"), r"mixer.out_proj of Mamba2ForCausalLM cannot carry"),
        ("mamba", ("o_proj",), r"mixer.out_proj of MambaForCausalLM cannot carry"),
        ("gpt2", ("attn.c_prj",), r"has no linear layer 'attn.c_prj'.*it has c_attn, c_fc, c_proj \(or say all-linear"),
        ("gpt2", ("lm_head",), r"has no linear layer 'lm_head'"),
    ],
)
def test_layers_that_cannot_be_adapted_are_refused_by_name(name: str, wanted: tuple[str, ...], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        find_targets(made(name), wanted)


def test_a_span_that_names_no_layer_is_refused() -> None:
    with pytest.raises(SettingsError, match="selects none of the model's 2 layers"):
        find_targets(made("gpt2"), ("c_fc",), layers="5:")


def test_towers_beside_the_text_are_adapted_only_where_a_path_leads_there() -> None:
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**SIZES, **ATTENTION, "num_key_value_heads": 2, "head_dim": 16}
    model = random_model(
        hf.Gemma3Config(
            text_config=text, vision_config={**vision, "image_size": 28, "patch_size": 14}, mm_tokens_per_image=4
        )
    )
    assert all("language_model" in path for path in find_targets(model, (ALL_LINEAR,)).modules)
    assert all("language_model" in path for path in find_targets(model, ("q_proj",)).modules)
    asked = next(n for n, m in model.named_modules() if "vision" in n and n.endswith("q_proj") and m is not None)
    assert find_targets(model, (asked,)).modules == (asked,)


def test_a_linear_layer_that_does_more_is_left_alone(tokenizer: PreTrainedTokenizerBase) -> None:
    class Router(nn.Linear):
        def forward(self, input: Tensor) -> Any:
            return super().forward(input), None

    class Spelled(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return input @ self.weight.T

    model = tiny_model("olmo", tokenizer)
    layer = model.get_submodule("model.layers.0.mlp")
    layer.gate_proj = Router(32, 64, bias=False)
    layer.up_proj = Spelled(32, 64, bias=False)
    found = find_targets(model, (ALL_LINEAR,)).modules
    assert "model.layers.0.mlp.gate_proj" not in found
    assert "model.layers.0.mlp.up_proj" in found


def test_the_narrowest_matrix_is_that_with_the_smallest_side() -> None:
    # Four query heads of width 8 share one of keys: k_proj is 8 by 32.
    config = hf.LlamaConfig(hidden_size=32, intermediate_size=64, num_attention_heads=4, num_key_value_heads=1)
    config.vocab_size, config.num_hidden_layers = 40, 1
    grouped = hf.LlamaForCausalLM(config)
    names = [f"model.layers.0.{name}" for name in ("mlp.up_proj", "self_attn.q_proj", "self_attn.k_proj")]
    assert narrowest(grouped, Targets(tuple(names))) == (names[2], 8)
    assert narrowest(grouped, Targets(tuple(names[:2]))) == (names[0], 32)
