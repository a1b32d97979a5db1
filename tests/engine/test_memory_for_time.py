"""Gradient checkpointing and stored lower states: the same run with less memory, or in less time."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from letheon import Row
from letheon.data.packing import pack
from letheon.data.sequences import tokenise_all
from letheon.engine.engine import Engine
from letheon.engine.patches.lower import lowest_trained_layer
from letheon.engine.paths import build_engine
from letheon.engine.reference import build_reference
from letheon.engine.values import token_values
from letheon.errors import SettingsError
from letheon.model.adapted import Adapted
from letheon.model.adapters import LoraSettings, attach_lora
from letheon.model.architectures import new_model
from letheon.model.layers import decoder_layers
from letheon.objective.values import Needs
from running import model_of, run, same, short_run

ARCHITECTURES = ["olmo", "llama", "gpt-neox", "qwen", "gemma", "gpt2"]
NUM_LAYERS, NUM_FORGET = 4, 3
NEEDS = Needs(kl="forward")


def deep_model(architecture: str, tokenizer: PreTrainedTokenizerBase, *, layers: str | None = None) -> Adapted:
    """A model of four layers with an adapter that changes it."""
    made = new_model(
        architecture, tokenizer=tokenizer, width=32, num_layers=NUM_LAYERS, num_heads=4, intermediate=64, context=256,
        seed=0,
    )  # fmt: skip
    made.eval()
    adapted = attach_lora(made, LoraSettings(rank=3, alpha=3, layers=layers), seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in adapted.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return adapted


def values_and_gradients(
    adapted: Adapted, rows: list[Row], tokenizer: PreTrainedTokenizerBase, **given: bool
) -> tuple[Engine, list[Tensor]]:
    """Log-probabilities and KL of a step over all rows, and the gradients of the adapter."""
    sequences = tokenise_all(rows, tokenizer, template="joined", max_length=200)
    batch = pack(sequences, is_forget=[i < NUM_FORGET for i in range(len(rows))], row_index=range(len(rows)))
    engine = build_engine(adapted.model, batch, adapter_off=adapted.off, **given)
    store = build_reference(engine, sequences, num_forget_rows=NUM_FORGET, needs=NEEDS)
    step = pack([sequences[i] for i in (4, 1, 5)], is_forget=[i < NUM_FORGET for i in (4, 1, 5)], row_index=[4, 1, 5])
    with engine.running():
        values = token_values(engine, store, step, needs=NEEDS)
        assert values.kl is not None
        gradients = torch.autograd.grad(values.log_probs.square().sum() + values.kl.sum(), adapted.parameters())
    return engine, [values.log_probs, values.kl, *gradients]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_recomputed_layers_give_the_very_same_gradients(
    architecture: str, tokenizer: PreTrainedTokenizerBase, rows: list[Row]
) -> None:
    adapted = deep_model(architecture, tokenizer)
    _, expected = values_and_gradients(adapted, rows, tokenizer)
    _, found = values_and_gradients(adapted, rows, tokenizer, recomputes=True)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_recomputed_layers_keep_a_fraction(tokenizer: PreTrainedTokenizerBase, rows: list[Row]) -> None:
    adapted = deep_model("olmo", tokenizer)
    sequences = tokenise_all(rows, tokenizer, template="joined", max_length=200)
    batch = pack(sequences, is_forget=[True] * len(rows), row_index=range(len(rows)))
    engine = build_engine(adapted.model, batch, adapter_off=adapted.off)
    own = {t.untyped_storage().data_ptr() for t in (*adapted.model.parameters(), *adapted.model.buffers())}

    def kept_bytes(engine: Engine) -> int:
        kept: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            if tensor.untyped_storage().data_ptr() not in own:
                kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with engine.running(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            states = engine.states(batch)
        assert states.requires_grad
        return sum(kept.values())

    # Of four layers three are recomputed.
    assert kept_bytes(replace(engine, recomputes=True)) < 0.5 * kept_bytes(engine)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("given", [{}, {"recomputes": True}])
def test_a_step_from_stored_states_equals_one_through_all_layers(
    given: dict[str, bool], architecture: str, tokenizer: PreTrainedTokenizerBase, rows: list[Row]
) -> None:
    adapted = deep_model(architecture, tokenizer, layers="2:")
    _, expected = values_and_gradients(adapted, rows, tokenizer)
    engine, found = values_and_gradients(adapted, rows, tokenizer, stores_lower=True, **given)
    assert (engine.path, engine.begins_at) == ("packed", 2)
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(found, expected, strict=True))


def test_the_layers_below_are_not_run(tokenizer: PreTrainedTokenizerBase, rows: list[Row]) -> None:
    adapted = deep_model("olmo", tokenizer, layers="2:")
    ran: list[int] = []
    for number, layer in enumerate(decoder_layers(adapted.model)):
        layer.get_submodule("mlp").register_forward_hook(lambda *_, number=number: ran.append(number))
    sequences = tokenise_all(rows, tokenizer, template="joined", max_length=200)
    batch = pack(sequences, is_forget=[i < NUM_FORGET for i in range(len(rows))], row_index=range(len(rows)))
    engine = build_engine(adapted.model, batch, adapter_off=adapted.off, stores_lower=True)
    store = build_reference(engine, sequences, num_forget_rows=NUM_FORGET, needs=NEEDS)
    assert store.lower is not None
    assert store.lower.shape == (batch.num_tokens, 32)
    ran.clear()
    with engine.running():
        token_values(engine, store, batch, needs=NEEDS)
        assert ran == [2, 3]
        engine.label_values(batch)  # a scoring: of rows that the store may not hold
    assert ran == [2, 3, 0, 1, 2, 3]


def test_the_lowest_trained_layer(tokenizer: PreTrainedTokenizerBase) -> None:
    model = deep_model("olmo", tokenizer, layers="1:3").model
    assert lowest_trained_layer(model) == 1
    model.get_input_embeddings().weight.requires_grad_()
    assert lowest_trained_layer(model) == 0
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    assert lowest_trained_layer(model) == NUM_LAYERS


@pytest.fixture
def given(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[Row], tmp_path: Path
) -> dict[str, Any]:
    return short_run(tmp_path, rows, model, tokenizer)


def test_whole_runs_are_the_same(given: dict[str, Any], tmp_path: Path) -> None:
    given["layers"] = "1:"
    plain = run(given)
    recomputed = run(given, out=tmp_path / "recomputed", gradient_checkpointing=True)
    stored = run(given, out=tmp_path / "stored", store_lower=True)
    assert same(model_of(recomputed), model_of(plain))
    assert all(torch.allclose(t, model_of(plain)[name], atol=1e-4) for name, t in model_of(stored).items())
    # The second run of a sweep finds the states in the cache.
    kept = [load_file(path) for path in (tmp_path / "cache" / "reference").glob("*.safetensors")]
    assert sorted("lower" in values for values in kept) == [False, True]
    again = run(given, out=tmp_path / "again", store_lower=True)
    assert same(model_of(again), model_of(stored))


@pytest.mark.parametrize("changed", [{}, {"adapt": "weights", "method": "gd"}])
def test_states_cannot_be_stored_where_the_lowest_layer_is_trained(
    changed: dict[str, Any], given: dict[str, Any]
) -> None:
    with pytest.raises(SettingsError, match=r"store_lower: expected frozen layers below .* give --layers"):
        run(given, store_lower=True, **changed)


def test_a_method_that_looks_below_the_stored_states_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="uses layer 0, below the lowest trained one"):
        run(given, method="rmu", layers="1:", coefficients={"layer": 0}, store_lower=True)


def test_a_model_that_runs_padded_says_that_nothing_is_stored(
    tokenizer: PreTrainedTokenizerBase, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    adapted = deep_model("olmo", tokenizer, layers="2:")
    monkeypatch.setattr(type(adapted.model.get_decoder()), "_can_set_attn_implementation", lambda _: False)
    _, expected = values_and_gradients(adapted, rows, tokenizer)
    engine, found = values_and_gradients(adapted, rows, tokenizer, stores_lower=True)
    assert (engine.path, engine.begins_at) == ("padded", 0)
    assert "cannot be stored on path 'padded'" in engine.notes[-1]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
