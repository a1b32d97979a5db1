"""Compiled layers: the values of the plain ones, and few compilations whatever the number of layers and lengths."""

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from letheon.data.packing import PackedBatch, pack
from letheon.data.rows import Row
from letheon.data.sequences import tokenise_all
from letheon.model import compiled
from letheon.model.adapted import Adapted, decoder_layers
from letheon.model.adapters import LoraSettings, attach_lora
from letheon.model.architectures import new_model
from letheon.model.compiled import compiled_layers
from letheon.model.engine import Engine, build_engine
from letheon.model.reference import build_reference
from letheon.objective.methods import Needs
from running import model_of, run, short_run

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),  # by dynamo
]

_COMPILE = torch.compile


@pytest.fixture(autouse=True)
def _compiles_anew(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Trace and differentiate as torch.compile does, but make machine code only in tests marked slow."""
    if request.node.get_closest_marker("slow") is None:
        monkeypatch.setattr(torch, "compile", partial(_COMPILE, backend="aot_eager"))
    compiled._compiled.cache_clear()
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()
    compiled._compiled.cache_clear()


def adapted_model(tokenizer: PreTrainedTokenizerBase, *, architecture: str = "olmo", num_layers: int = 3) -> Adapted:
    """A model with an adapter on all linear layers that changes it."""
    made = new_model(
        architecture, tokenizer=tokenizer, width=32, num_layers=num_layers, num_heads=4, intermediate=64, context=256,
        seed=0,
    )  # fmt: skip
    adapted = attach_lora(made.eval(), LoraSettings(rank=3, alpha=3, targets=("all-linear",)), seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in adapted.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return adapted


def packed(rows: list[Row], tokenizer: PreTrainedTokenizerBase, chosen: tuple[int, ...]) -> PackedBatch:
    sequences = tokenise_all(rows, tokenizer, template="joined", max_length=200)
    return pack([sequences[i] for i in chosen], is_forget=[i < 3 for i in chosen], row_index=chosen)


def values(engine: Engine, adapted: Adapted, batch: PackedBatch) -> list[Tensor]:
    """Log-probabilities of the answers, and their gradients in the adapter."""
    with engine.running():
        terms = engine.label_terms(batch)
        return [terms.log_probs, *torch.autograd.grad(terms.log_probs.square().sum(), adapted.parameters())]


@pytest.mark.parametrize("architecture", ["olmo", "llama", "gpt-neox", "gemma", "gpt2"])
def test_values_and_gradients_are_those_of_the_plain_layers(
    architecture: str, tokenizer: PreTrainedTokenizerBase, rows: list[Row]
) -> None:
    adapted = adapted_model(tokenizer, architecture=architecture)
    probe, batch = packed(rows, tokenizer, (0, 3, 5)), packed(rows, tokenizer, (4, 1))
    plain = build_engine(adapted.model, probe, adapter_off=adapted.off)
    fast = build_engine(adapted.model, probe, adapter_off=adapted.off, compiles=True)
    assert (fast.notes, fast.compiles) == (plain.notes, True)
    for expected, found in zip(values(plain, adapted, batch), values(fast, adapted, batch), strict=True):
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert counters["stats"]["unique_graphs"] > 0


def test_runs_that_compile_and_runs_that_do_not_share_one_store(
    tokenizer: PreTrainedTokenizerBase, rows: list[Row]
) -> None:
    adapted, probe = adapted_model(tokenizer), packed(rows, tokenizer, (0, 3, 5))
    sequences = tokenise_all(rows, tokenizer, template="joined", max_length=200)
    stores = []
    for compiles in (False, True):
        engine = build_engine(adapted.model, probe, adapter_off=adapted.off, compiles=compiles)
        counters.clear()
        stores.append(build_reference(engine, sequences, num_forget_rows=3, needs=Needs(kl="forward")))
        assert counters["stats"]["unique_graphs"] == 0
    assert torch.equal(stores[0].log_probs, stores[1].log_probs)
    assert stores[0].embedding is not None
    assert stores[1].embedding is not None
    assert torch.equal(stores[0].embedding, stores[1].embedding)


def graphs_of(adapted: Adapted, batches: list[PackedBatch]) -> int:
    """How often was compiled for a forward and backward over each batch, and a forward alone."""
    torch._dynamo.reset()
    counters.clear()
    engine = build_engine(adapted.model, batches[0], adapter_off=adapted.off, compiles=True)
    for batch in batches:
        values(engine, adapted, batch)
        with torch.no_grad(), engine.running():
            engine.likeliest(batch)
    return counters["stats"]["unique_graphs"]


def test_more_layers_and_lengths_compile_no_more(tokenizer: PreTrainedTokenizerBase, rows: list[Row]) -> None:
    batches = [packed(rows, tokenizer, chosen) for chosen in ((0, 3, 5), (1, 4), (2, 3, 4, 5), (0,), (5, 1, 3))]
    few = graphs_of(adapted_model(tokenizer, num_layers=3), batches[:1])
    many = graphs_of(adapted_model(tokenizer, num_layers=9), batches)
    assert few == many > 0


def test_the_modules_own_forward_is_put_back(tokenizer: PreTrainedTokenizerBase) -> None:
    model = adapted_model(tokenizer).model
    blocks = [layer.mlp for layer in decoder_layers(model)]
    with compiled_layers(model):
        with compiled_layers(model):
            pass
        assert all("forward" in block.__dict__ for block in blocks)
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_where_it_cannot_be_compiled_the_engine_says_so_and_runs(
    tokenizer: PreTrainedTokenizerBase, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_compiler(*_: object, **__: object) -> Any:
        def fails(*_: object, **__: object) -> Any:
            raise RuntimeError("no C++ compiler\nlong explanation")

        return fails

    monkeypatch.setattr(torch, "compile", without_compiler)
    adapted, probe = adapted_model(tokenizer), packed(rows, tokenizer, (0, 3, 5))
    engine = build_engine(adapted.model, probe, adapter_off=adapted.off, compiles=True)
    assert (engine.path, engine.compiles) == ("packed", False)
    assert engine.notes == ("the compiled model fails (RuntimeError: no C++ compiler); nothing is compiled",)
    assert values(engine, adapted, probe)[0].isfinite().all()


@pytest.mark.parametrize("also", [{}, {"gradient_checkpointing": True}])
def test_a_run_comes_to_the_same_losses(
    also: dict[str, Any], tmp_path: Path, rows: list[Row], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    _check_run(also, tmp_path, rows, model, tokenizer)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile makes machine code with g++ on a CPU")
def test_a_run_of_machine_code_comes_to_the_same_losses(
    tmp_path: Path, rows: list[Row], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    _check_run({}, tmp_path, rows, model, tokenizer)


def _check_run(
    also: dict[str, Any], folder: Path, rows: list[Row], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    given = {**short_run(folder, rows, model, tokenizer), **also, "target_modules": "all-linear"}
    plain = run(given, out=folder / "plain")
    fast = run(given, out=folder / "compiled", compile=True)
    assert counters["stats"]["unique_graphs"] > 0
    expected, found = model_of(plain), model_of(fast)
    assert all(torch.allclose(found[name], value, atol=1e-4) for name, value in expected.items())
    assert fast.kept.values["retain_loss"] == pytest.approx(plain.kept.values["retain_loss"], abs=1e-4)
