"""Linear layers in 8 and 4 bits: what the codes stand for, products and gradients, and the ordinary model of them."""

from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedTokenizerBase

from letheon.model.adapters import LoraAdapter, LoraSettings, attach_lora
from letheon.model.codes import dequantised, matrix_shape, stored_bytes
from letheon.model.fingerprint import fingerprint, fingerprint_as_saved
from letheon.model.loading import load_model, save_model
from letheon.model.lowrank import fused_adapters, is_plain
from letheon.model.quantised_layers import QuantisedLinear
from letheon.model.taking import computing_as_saved
from letheon.model.widening import widened_linear
from small import tiny_model

pytest.importorskip("bitsandbytes")

Kind = Literal["nf4", "int8"]
KINDS: tuple[Kind, ...] = ("nf4", "int8")
IDS = torch.arange(5, 25)[None]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    return found


def saved(folder: Path, architecture: str, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype) -> str:
    model = tiny_model(architecture, tokenizer)
    model.to(dtype)  # type: ignore[arg-type]  # transformers annotates it so
    save_model(model, tokenizer, folder)
    return str(folder)


def adapted(source: str, kind: Kind | None, *, dtype: Any = "float32", **lora: Any) -> LoraAdapter:
    """A model with an adapter that changes it."""
    model = load_model(source, dtype=dtype, device="cpu", quantise=kind).model
    adapter = attach_lora(model, LoraSettings(rank=3, **{"targets": ("all-linear",), **lora}), seed=0)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in adapter.peft.named_parameters():
        if ".lora_B." in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    return adapter


def quantised_weight(kind: Kind, matrix: Tensor) -> Any:
    import bitsandbytes as bnb

    if kind == "int8":
        return bnb.nn.Int8Params(matrix, requires_grad=False, has_fp16_weights=False).to("cpu")
    return bnb.nn.Params4bit(matrix, requires_grad=False, quant_type="nf4", compress_statistics=False).to("cpu")


def test_int8_codes_stand_for_their_share_of_a_rows_largest_number() -> None:
    weight = quantised_weight("int8", torch.tensor([[2.0, -1.0, 0.25], [0.0, 0.5, -0.1]]))
    # Steps of 2 / 127 and 0.5 / 127: -1 is -63.5 steps, 0.25 is 15.9, -0.1 is -25.4.
    expected = torch.tensor([[127.0, -64.0, 16.0], [0.0, 127.0, -25.0]]) * torch.tensor([[2.0], [0.5]]) / 127
    assert torch.allclose(dequantised(weight, torch.float32), expected, atol=1e-6)
    assert stored_bytes(weight) == 6 + 2 * 4


def test_nf4_codes_stand_for_the_nearest_of_sixteen_times_the_largest_number_of_a_block() -> None:
    matrix = torch.zeros(2, 64)
    matrix[0, :3] = torch.tensor([4.0, -4.0, 1.8])  # 1.8 / 4 = 0.45, next to the code 0.4407
    matrix[1, 0] = 0.5
    weight = quantised_weight("nf4", matrix)
    found = dequantised(weight, torch.float32)
    assert torch.allclose(found[0, :3], torch.tensor([4.0, -4.0, 4 * 0.44070982933044434]), atol=1e-6)
    assert found[1, 0] == 0.5
    assert found[:, 3:].count_nonzero() == 0
    assert matrix_shape(weight) == (2, 64)
    assert stored_bytes(weight) == 128 // 2 + 2 * 4 + 16 * 4  # codes, an absmax a block, the codebook


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_product_is_that_of_the_dequantised_matrix(kind: Kind, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = quantised_weight(kind, torch.randn(48, 64, generator=generator))
    states = torch.randn(2, 5, 64, generator=generator).to(dtype).requires_grad_()
    bias = torch.randn(48, generator=generator).to(dtype)
    matrix = dequantised(weight, dtype)
    found, expected = widened_linear(states, weight, bias), nn.functional.linear(states, matrix, bias)
    assert torch.equal(found, expected)
    of_output = torch.randn(found.shape, generator=generator).to(dtype)
    ours = torch.autograd.grad(found, states, of_output)[0]
    assert torch.allclose(ours, torch.autograd.grad(expected, states, of_output)[0], rtol=1e-5, atol=1e-6)


def test_fused_and_plain_peft_layers_agree_over_quantised_weights(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, kind: Kind
) -> None:
    adapter = adapted(saved(tmp_path / "m", "olmo", tokenizer, torch.float32), kind)
    plain = _gradients(adapter)
    with fused_adapters(adapter.model):
        fused = _gradients(adapter)
    assert plain.keys() == fused.keys()
    assert len(plain) == 2 * 14  # A and B of seven layers, twice
    for name, gradient in plain.items():
        # Sums of the same float32 products in another order.
        assert torch.allclose(fused[name], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max())), name


def test_gradients_are_those_of_pefts_own_layers_for_nf4(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    source = saved(tmp_path / "m", "olmo", tokenizer, torch.float32)
    adapter = adapted(source, "nf4")
    with fused_adapters(adapter.model):
        ours = _gradients(adapter)
    how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    theirs = AutoModelForCausalLM.from_pretrained(source, quantization_config=how, device_map={"": "cpu"})
    config = LoraConfig(r=3, lora_alpha=5, target_modules=list(adapter.targets), lora_dropout=0.0, bias="none")
    peft: Any = get_peft_model(theirs, config)
    layer = next(module for module in peft.modules() if hasattr(module, "lora_A"))
    assert type(layer).__name__ == "Linear4bit"
    named = dict(peft.named_parameters())
    for name, value in adapter.trained().items():
        named[name].data = value.clone()
    peft.train()  # bitsandbytes repacks the codes of a layer in evaluation mode on some CPUs
    peft(IDS).logits.logsumexp(-1).sum().backward()
    for name, gradient in ours.items():
        expected = named[name].grad
        assert torch.allclose(gradient, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max())), name


def _gradients(adapter: LoraAdapter) -> dict[str, Tensor]:
    adapter.peft.zero_grad()
    adapter.model(IDS).logits.logsumexp(-1).sum().backward()
    return {name: p.grad.clone() for name, p in adapter.peft.named_parameters() if p.grad is not None}


def test_every_linear_layer_carries_a_plain_adapter(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, kind: Kind
) -> None:
    adapter = adapted(saved(tmp_path / "m", "gpt2", tokenizer, torch.float32), kind)
    layers: list[Any] = [module for module in adapter.model.modules() if hasattr(module, "lora_A")]
    assert len(layers) == 8
    assert all(is_plain(layer) and isinstance(layer.get_base_layer(), QuantisedLinear) for layer in layers)
    assert adapter.notes == ()


@pytest.mark.parametrize("architecture", ["olmo", "gpt2"])
@pytest.mark.parametrize("dtype", ["float32", "widened", "bfloat16"])
def test_the_saved_model_is_an_ordinary_one_that_computes_what_was_measured(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, kind: Kind, architecture: str, dtype: Any
) -> None:
    stored = torch.float32 if dtype == "float32" else torch.bfloat16
    source = saved(tmp_path / "m", architecture, tokenizer, stored)
    adapter = adapted(source, kind, dtype=dtype)
    save_model(adapter.model, tokenizer, tmp_path / "out", state=adapter.merged_state())
    before, after = load_file(tmp_path / "m/model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    assert {n: (t.shape, t.dtype) for n, t in after.items()} == {n: (t.shape, t.dtype) for n, t in before.items()}
    assert "quantization_config" not in (tmp_path / "out/config.json").read_text()
    loaded = load_model(str(tmp_path / "out"), dtype=dtype, device="cpu").model
    with torch.no_grad():
        with_adapter = adapter.model(IDS).logits
        with computing_as_saved(adapter):
            as_saved = adapter.model(IDS).logits
        assert torch.equal(adapter.model(IDS).logits, with_adapter)  # all is as it was
        expected = loaded(IDS).logits
    assert torch.equal(as_saved, expected)
    assert fingerprint(loaded) == fingerprint_as_saved(adapter.model, adapter.merged_state(), tmp_path / "out")
    tolerance = 1e-4 if dtype == "float32" else 0.2
    assert torch.allclose(with_adapter.float(), expected.float(), atol=tolerance)


def test_decomposed_adapters_are_merged_as_they_compute(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, kind: Kind
) -> None:
    source = saved(tmp_path / "m", "olmo", tokenizer, torch.float32)
    adapter = adapted(source, kind, decomposed=True)
    save_model(adapter.model, tokenizer, tmp_path / "out", state=adapter.merged_state())
    with torch.no_grad():
        found = adapter.model(IDS).logits
        with adapter.off():
            assert not torch.allclose(adapter.model(IDS).logits, found, atol=0.1)
        expected = load_model(str(tmp_path / "out"), dtype="float32", device="cpu").model(IDS).logits
    assert torch.allclose(found, expected, atol=1e-4)


def test_a_checkpoint_that_is_quantised_is_the_one_quantised_on_loading(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, kind: Kind
) -> None:
    source = saved(tmp_path / "m", "olmo", tokenizer, torch.bfloat16)
    ready = {"load_in_8bit": True} if kind == "int8" else {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    made = AutoModelForCausalLM.from_pretrained(
        source, dtype=torch.bfloat16, quantization_config=BitsAndBytesConfig(**ready), device_map={"": "cpu"}
    )
    made.save_pretrained(tmp_path / "q")
    tokenizer.save_pretrained(tmp_path / "q")
    assert "U8" in str(_dtypes(tmp_path / "q")) or "I8" in str(_dtypes(tmp_path / "q"))
    one, two = adapted(source, kind, dtype="widened"), adapted(str(tmp_path / "q"), None, dtype="widened")
    with torch.no_grad():
        assert torch.equal(one.model(IDS).logits, two.model(IDS).logits)
    save_model(two.model, tokenizer, tmp_path / "out", state=two.merged_state())
    assert {t.dtype for t in load_file(tmp_path / "out/model.safetensors").values()} == {torch.bfloat16}
    for name, value in one.merged_state().items():
        assert torch.equal(two.merged_state()[name], value), name


def _dtypes(folder: Path) -> set[str]:
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118


@pytest.mark.parametrize("architecture", ["olmo", "gpt2"])
def test_a_quantised_checkpoint_can_be_made_an_ordinary_model(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, kind: Kind, architecture: str
) -> None:
    source = saved(tmp_path / "m", architecture, tokenizer, torch.bfloat16)
    quantised = load_model(source, dtype="widened", device="cpu", quantise=kind).model
    ordinary = load_model(source, dtype="widened", device="cpu", quantise=kind, dequantise=True).model
    with torch.no_grad():
        found, expected = ordinary(IDS).logits, quantised(IDS).logits
    assert torch.allclose(found, expected, atol=0.1)  # the dequantised numbers are rounded to bfloat16
    save_model(ordinary, tokenizer, tmp_path / "out")
    before, after = load_file(tmp_path / "m/model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    assert {n: (t.shape, t.dtype) for n, t in after.items()} == {n: (t.shape, t.dtype) for n, t in before.items()}
    with torch.no_grad():
        assert torch.equal(load_model(str(tmp_path / "out"), dtype="widened", device="cpu").model(IDS).logits, found)
    ordinary.requires_grad_(True)
    ordinary(IDS).logits.sum().backward()
