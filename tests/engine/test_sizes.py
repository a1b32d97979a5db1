"""Packs of few sizes: what fills them up changes no value and no gradient, and leaves few shapes of products."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from letheon import Row
from letheon.data.packing import PackedBatch, pack, probe_of
from letheon.data.sequences import TokenSequence, tokenise_all
from letheon.engine.engine import Engine
from letheon.engine.patches.lower import first_layer_run, states_given_to
from letheon.engine.paths import build_engine
from letheon.engine.sizes import NOTHING, Filling, filled, filled_answers, filling_of, is_compiled_by_size
from letheon.model.adapted import Adapted
from letheon.model.adapters import LoraSettings, attach_lora
from letheon.model.layers import decoder_layers
from small import tiny_model


@pytest.mark.parametrize(
    ("tokens", "answers", "expected"),
    [
        (1, 1, Filling(31, 31)),
        (32, 32, NOTHING),
        (500, 95, Filling(12, 1)),
        (70, 60, Filling(26, 4)),  # 74 tokens with the new answers, so 96
        (1025, 0, Filling(63, 0)),
    ],
)
def test_both_numbers_become_round(tokens: int, answers: int, expected: Filling) -> None:
    assert filling_of(tokens, answers) == expected


def test_sizes_are_few_and_cost_little() -> None:
    for octave in (512, 1024, 8192):
        tokens = range(octave, 2 * octave)
        added = [filling_of(number, 0).tokens for number in tokens]
        assert len({number + more for number, more in zip(tokens, added, strict=True)}) == 17  # both ends
        assert max(more / number for number, more in zip(tokens, added, strict=True)) < 1 / 16


def test_a_filling_is_sequences_no_longer_than_the_longest() -> None:
    batch = pack([TokenSequence((5, 6, 7), 1), TokenSequence((8, 9), 1)], is_forget=[True] * 2, row_index=[0, 1])
    ids, positions, boundaries, padding = filled(batch, Filling(7, 2))
    assert ids.tolist() == [5, 6, 7, 8, 9, *[0] * 7]
    assert positions.tolist() == [0, 1, 2, 0, 1, 0, 1, 2, 0, 1, 2, 0]
    assert boundaries == (0, 3, 5, 8, 11, 12)
    assert padding == (0,) * 5
    assert filled_answers(batch, Filling(7, 2)).tolist() == [*batch.answer_positions.tolist(), 5, 6]
    assert filled(batch, NOTHING)[0] is batch.input_ids
    assert filled_answers(batch, NOTHING) is batch.answer_positions


def test_only_bfloat16_on_a_cpu_is_compiled_by_size(tokenizer: PreTrainedTokenizerBase) -> None:
    model = tiny_model("llama", tokenizer)
    assert not is_compiled_by_size(model)
    torch.nn.Module.to(model, torch.bfloat16)
    assert is_compiled_by_size(model)


@pytest.mark.parametrize("architecture", ["olmo", "gpt-neox", "gpt2"])
@pytest.mark.parametrize("trims", [True, False])
def test_values_and_gradients_are_those_without(
    architecture: str,
    trims: bool,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[Row],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    adapted, engine, batch = built(architecture, tokenizer, rows)
    engine = engine if trims else replace(engine, selection=None)
    plain = values_and_gradients(adapted, engine, batch)
    monkeypatch.setattr("letheon.engine.engine.is_compiled_by_size", lambda _: True)
    assert engine.filling(batch.num_tokens, len(batch.labels)).answers
    for found, expected in zip(values_and_gradients(adapted, engine, batch), plain, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_a_step_from_stored_states_is_filled_too(
    tokenizer: PreTrainedTokenizerBase, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    adapted, engine, batch = built("llama", tokenizer, rows, layers="-1:")
    layer = first_layer_run(adapted.model)
    assert layer > 0
    with torch.no_grad(), engine.running():
        with states_given_to(adapted.model, layer) as lower:
            expected = engine.states(batch)
        monkeypatch.setattr("letheon.engine.engine.is_compiled_by_size", lambda _: True)
        found = replace(engine, begins_at=layer).states(batch, lower=lower[0][0])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_packs_of_a_bfloat16_model_are_of_few_sizes(tokenizer: PreTrainedTokenizerBase, rows: list[Row]) -> None:
    adapted, engine, _ = built("llama", tokenizer, rows, dtype=torch.bfloat16)
    sequences = sequences_of(rows, tokenizer)
    batches = [batch_of(sequences[: number + 1]) for number in range(len(sequences))]
    layers = decoder_layers(adapted.model)
    sizes: dict[int, set[int]] = {0: set(), len(layers) - 1: set()}

    def note(layer: int) -> None:
        projection = layers[layer].get_submodule("mlp.up_proj")
        projection.register_forward_pre_hook(lambda _, given: sizes[layer].add(given[0].shape[1]))

    for layer in sizes:
        note(layer)
    with torch.no_grad(), engine.running():
        for batch in batches:
            engine.states(batch)
    first, last = sizes.values()
    assert len({batch.num_tokens for batch in batches}) > len(first)
    assert {size % 32 for size in first | last} == {0}
    assert max(last) < max(first)


def built(
    architecture: str,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[Row],
    *,
    layers: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[Adapted, Engine, PackedBatch]:
    """A model with an adapter that changes it, its engine, and a batch of all rows."""
    model = tiny_model(architecture, tokenizer)
    torch.nn.Module.to(model, dtype)
    adapted = attach_lora(model, LoraSettings(rank=3, alpha=3, layers=layers), seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in adapted.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    sequences = sequences_of(rows, tokenizer)
    engine = build_engine(adapted.model, probe_of(sequences), adapter_off=adapted.off)
    assert engine.path == "packed"
    return adapted, engine, batch_of(sequences)


def sequences_of(rows: list[Row], tokenizer: PreTrainedTokenizerBase) -> list[TokenSequence]:
    return tokenise_all(rows, tokenizer, template="joined", max_length=200)


def batch_of(sequences: Sequence[TokenSequence]) -> PackedBatch:
    return pack(sequences, is_forget=[False] * len(sequences), row_index=range(len(sequences)))


def values_and_gradients(adapted: Adapted, engine: Engine, batch: PackedBatch) -> list[Tensor]:
    """Log-probabilities of the answers, and the gradient of each parameter of the adapter."""
    for parameter in adapted.parameters():
        parameter.grad = None
    with engine.running():
        found = engine.label_values(batch).log_probs
        (found * torch.linspace(-1, 2, len(found))).sum().backward()
    return [found.detach(), *(parameter.grad for parameter in adapted.parameters() if parameter.grad is not None)]
