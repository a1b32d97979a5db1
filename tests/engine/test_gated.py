"""Gated blocks that keep less: the same bits from less memory, and blocks that compute something else left alone."""

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from architecture_table import CASES, random_model
from letheon import Row
from letheon.data.packing import pack
from letheon.data.sequences import tokenise_all
from letheon.engine.patches.gated import gated_blocks, lean_blocks
from letheon.engine.paths import build_engine

WIDTH, INSIDE = 8, 20
GATED = ("olmo", "olmo-2", "llama-3", "qwen-2.5", "gemma-2", "mistral")


class Block(nn.Module):
    """f(gate) * up, times a factor where there is one."""

    def __init__(self, activation: nn.Module, *, factor: float | None = None) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(WIDTH, INSIDE, bias=False) for _ in range(2))
        self.down_proj, self.act_fn, self.factor = nn.Linear(INSIDE, WIDTH, bias=False), activation, factor

    def forward(self, states: Tensor) -> Tensor:
        gated = self.act_fn(self.gate_proj(states)) * self.up_proj(states)
        output: Tensor = self.down_proj(gated if self.factor is None else gated * self.factor)
        return output


def kept_numbers(block: nn.Module, states: Tensor) -> int:
    """How many numbers autograd keeps of a forward, the block's own weights left out."""
    own = {parameter.data_ptr() for parameter in block.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in own:
            kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        block(states)
    return sum(kept.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", [nn.SiLU(), nn.GELU(approximate="tanh"), nn.ReLU()])
def test_bits_are_the_blocks_own_and_two_vectors_are_kept_of_three(activation: nn.Module, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    block = Block(activation).to(dtype)
    block.requires_grad_(False)
    found: list[list[Tensor]] = []
    kept: list[int] = []
    for context in (nullcontext(), lean_blocks(gated_blocks(block))):
        states = torch.linspace(-2, 2, 5 * WIDTH).reshape(5, WIDTH).to(dtype).requires_grad_()
        with context:
            output = block(states)
            (gradient,) = torch.autograd.grad((output.float() * torch.linspace(-1, 2, WIDTH)).sum(), states)
            kept.append(kept_numbers(block, states))
        found.append([output, gradient])
    assert all(torch.equal(lean, own) for lean, own in zip(found[1], found[0], strict=True))
    # ReLU needs of its input no more than of its output, so that autograd keeps two for it as well.
    assert kept == [(2 if isinstance(activation, nn.ReLU) else 3) * 5 * INSIDE, 2 * 5 * INSIDE]


def test_gradients_of_the_matrices_are_the_blocks_own() -> None:
    torch.manual_seed(0)
    block, states = Block(nn.SiLU()), torch.randn(5, WIDTH)
    found: list[list[Any]] = []
    for context in (nullcontext(), lean_blocks(gated_blocks(block))):
        block.zero_grad()
        with context:
            block(states).square().sum().backward()
        found.append([parameter.grad for parameter in block.parameters()])
    assert all(torch.equal(lean, own) for lean, own in zip(found[1], found[0], strict=True))


def test_a_block_that_does_more_is_left_alone() -> None:
    plain, scaled = Block(nn.SiLU()), Block(nn.SiLU(), factor=0.5)
    assert gated_blocks(nn.ModuleList([plain, scaled])) == (plain,)


def test_a_block_has_its_own_forward_back_after_an_error() -> None:
    block = Block(nn.SiLU())
    with pytest.raises(RuntimeError), lean_blocks([block]):
        block(torch.zeros(2, WIDTH + 1))
    assert "forward" not in block.__dict__


@pytest.mark.parametrize("name", GATED)
def test_models_come_to_the_same_bits(name: str, tokenizer: PreTrainedTokenizerBase, rows: list[Row]) -> None:
    model = random_model(CASES[name].config(len(tokenizer)))
    sequences = tokenise_all(rows, tokenizer, template="joined", max_length=200)
    batch = pack(sequences, is_forget=[True] * len(rows), row_index=range(len(rows)))
    engine = build_engine(model, batch, adapter_off=nullcontext)
    assert len(engine.gated) == model.config.num_hidden_layers
    found = []
    for each in (engine, replace(engine, gated=())):
        with each.running():
            values = each.label_values(batch).log_probs
            gradients = torch.autograd.grad(values.square().sum(), list(model.parameters()), allow_unused=True)
        found.append([values, *(gradient for gradient in gradients if gradient is not None)])
    assert all(torch.equal(lean, own) for lean, own in zip(*found, strict=True))
