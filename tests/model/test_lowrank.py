"""The fused adapter against PEFT's own layers: values, gradients, and what it leaves alone."""

import copy
from collections.abc import Iterator
from contextlib import nullcontext
from statistics import fmean
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from letheon.model.adapters import LoraSettings, attach_lora
from letheon.model.lowrank import fused_adapters, is_plain
from small import tiny_model

WIDTH, OUT = 24, 40


class Net(nn.Module):
    """Two layers that can carry an adapter, with something between."""

    def __init__(self, *, bias: bool, transposed: bool) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first: nn.Module
        self.second: nn.Module
        if transposed:
            self.first, self.second = Conv1D(OUT, WIDTH), Conv1D(WIDTH, OUT)
        else:
            self.first, self.second = nn.Linear(WIDTH, OUT, bias=bias), nn.Linear(OUT, WIDTH, bias=bias)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3

    def forward(self, states: Tensor) -> Tensor:
        output: Tensor = self.second(torch.tanh(self.first(states)))
        return output


def adapted(
    *, bias: bool = True, transposed: bool = False, dtype: torch.dtype = torch.float32, **lora: Any
) -> nn.Module:
    """The net with adapters that change it, their weights in float32."""
    net = Net(bias=bias, transposed=transposed).to(dtype)
    config = LoraConfig(
        r=3,
        lora_alpha=7,
        target_modules=["first", "second"],
        fan_in_fan_out=transposed,
        **{"lora_dropout": 0.0, **lora},
    )
    peft: nn.Module = get_peft_model(net, config)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in peft.named_parameters():
        if ".lora_A." in name or ".lora_B." in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    peft.eval()
    return peft


def inputs(dtype: torch.dtype = torch.float32, *, shape: tuple[int, ...] = (2, 5)) -> Tensor:
    return torch.randn(*shape, WIDTH, generator=torch.Generator().manual_seed(2)).to(dtype)


def values(model: nn.Module, states: Tensor, *, fused: bool) -> dict[str, Tensor]:
    """Output, and the gradients of all that has one under a loss that weighs every output differently."""
    model.zero_grad()
    states = states.detach().clone().requires_grad_()
    with fused_adapters(model) if fused else nullcontext():
        output = model(states)
        weights = torch.linspace(-1, 2, output.numel()).reshape(output.shape)
        (output.float() * weights).sum().backward()
    assert states.grad is not None
    found = {"output": output.detach(), "states": states.grad}
    return {**found, **{name: p.grad for name, p in model.named_parameters() if p.grad is not None}}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("shape", [(2, 5), (7,), (1, 1, 3)])
def test_values_and_gradients_equal_pefts(bias: bool, transposed: bool, shape: tuple[int, ...]) -> None:
    model = adapted(bias=bias, transposed=transposed)
    plain, fused = (values(model, inputs(shape=shape), fused=choice) for choice in (False, True))
    assert plain.keys() == fused.keys()
    assert sum(".lora_" in name for name in fused) == 4
    for name, value in plain.items():
        assert torch.allclose(fused[name], value, rtol=1e-5, atol=1e-5), name


@pytest.mark.parametrize("rslora", [True, False])
def test_the_scaling_is_pefts(rslora: bool) -> None:
    model = adapted(use_rslora=rslora)
    plain, fused = (values(model, inputs(), fused=choice) for choice in (False, True))
    assert torch.allclose(plain["output"], fused["output"], atol=1e-5)


@pytest.mark.parametrize("transposed", [True, False])
def test_in_bfloat16_the_error_is_no_worse_than_pefts(transposed: bool) -> None:
    model = adapted(dtype=torch.bfloat16, transposed=transposed)
    exact = copy.deepcopy(model).double()  # the truth: the same numbers, computed in float64
    errors: dict[str, list[float]] = {}
    for seed in range(10):
        states = torch.randn(64, WIDTH, generator=torch.Generator().manual_seed(seed)).bfloat16()
        truth = values(exact, states.double(), fused=False)
        plain, fused = (values(model, states, fused=choice) for choice in (False, True))
        for name, value in truth.items():
            assert fused[name].dtype == plain[name].dtype, name
            ours, pefts = (float((found[name].double() - value).norm()) for found in (fused, plain))
            errors.setdefault(name, []).append(ours / pefts)
    # Rounding the product once more than PEFT does would cost the output 20%; 4% is chance.
    assert {name: ratio for name, found in errors.items() if (ratio := fmean(found)) > 1.04} == {}


def test_off_it_is_the_plain_layer() -> None:
    model = adapted()
    assert isinstance(model, PeftModel)
    with torch.no_grad():
        with model.disable_adapter():
            expected = model(inputs())
            with fused_adapters(model):
                off = model(inputs())
        with fused_adapters(model), model.disable_adapter():
            inside = model(inputs())
        on = model(inputs())
    assert torch.equal(off, inside)
    assert torch.allclose(off, expected, atol=1e-6)
    assert (on - expected).abs().max() > 0.1


def layers(model: nn.Module) -> Iterator[LoraLinear]:
    return (module for module in model.modules() if isinstance(module, LoraLinear))


def is_fused(model: nn.Module) -> list[bool]:
    return [type(layer) is not LoraLinear for layer in layers(model)]


def test_nested_blocks_fuse_once_and_the_forward_is_restored() -> None:
    model = adapted()
    assert is_fused(model) == [False, False]
    with fused_adapters(model):
        assert is_fused(model) == [True, True]
        with fused_adapters(model):
            assert is_fused(model) == [True, True]
        assert is_fused(model) == [True, True]
    assert is_fused(model) == [False, False]


def test_the_forward_is_restored_after_an_exception() -> None:
    model = adapted()
    with pytest.raises(RuntimeError, match="stop"), fused_adapters(model):
        raise RuntimeError("stop")
    assert is_fused(model) == [False, False]
    plain = model(inputs())
    assert plain.grad_fn is not None


@pytest.mark.parametrize("lora", [{"use_dora": True}, {"lora_dropout": 0.1}, {"lora_bias": True}])
def test_layers_that_do_more_keep_their_forward(lora: dict[str, Any]) -> None:
    model = adapted(**lora)
    with fused_adapters(model):
        assert is_fused(model) == [False, False]


def test_merged_layers_and_trained_base_weights_keep_their_forward() -> None:
    model = adapted()
    first, second = layers(model)
    first.merge()
    second.get_base_layer().weight.requires_grad_()
    with fused_adapters(model):
        assert is_fused(model) == [False, False]
    first.unmerge()
    assert is_plain(first)


def test_an_output_can_be_changed_in_place() -> None:
    # As OLMo clamps its queries, keys and values.
    model = adapted()
    with fused_adapters(model):
        next(layers(model))(inputs()).clamp_(-0.5, 0.5).sum().backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if "first.lora_" in n)


@pytest.mark.parametrize("architecture", ["olmo", "gpt2", "gpt-neox"])
def test_whole_models_have_pefts_gradients(architecture: str, tokenizer: PreTrainedTokenizerBase) -> None:
    model = attach_lora(tiny_model(architecture, tokenizer), LoraSettings(rank=3), seed=0)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    ids = torch.arange(5, 30)[None]
    found = []
    for block in (nullcontext(), fused_adapters(model.model)):
        with block:
            model.model.zero_grad()
            model.model(input_ids=ids, labels=ids).loss.backward()
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert len(found[0]) == len(model.parameters())
    for plain, fused in zip(*found, strict=True):
        assert torch.allclose(plain, fused, rtol=1e-4, atol=1e-6)
