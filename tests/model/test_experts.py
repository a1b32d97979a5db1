"""Mixtures of experts: adapters in routed experts, in every family that transformers has."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora.layer import ParamWrapper
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from architecture_table import random_model
from expert_families import FAMILIES, FAST, config_of
from letheon.data.rows import Row
from letheon.engine.population import populate
from letheon.errors import ModelError
from letheon.model.adapters import LoraAdapter, LoraSettings, attach_lora
from letheon.model.experts import _Stack, factors, fused_experts, merged_experts
from letheon.model.loading import save_model
from letheon.model.lowrank import ADAPTER, fused_adapters
from letheon.model.targets import ALL_LINEAR
from letheon.model.widening import widen
from letheon.settings import UnlearnSettings
from letheon.training.tracking import Silent
from letheon.unlearning.populations import run_population
from letheon.unlearning.record import RunReport
from letheon.unlearning.run import unlearn
from running import After, events, model_of, run, same, short_run

every = pytest.mark.parametrize(
    "family", [f if f in FAST else pytest.param(f, marks=pytest.mark.slow) for f in FAMILIES]
)
IDS = torch.arange(5, 53).reshape(2, 24)


def made(family: str, tokenizer: PreTrainedTokenizerBase, folder: Path | None = None) -> PreTrainedModel:
    """A small model of a family, as it comes from disk if a folder is given."""
    model = random_model(config_of(family, vocab_size=len(tokenizer)))
    if folder is None:
        return model
    save_model(model, tokenizer, folder)
    loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder).eval()
    return loaded


def moved(model: PreTrainedModel, **settings: Any) -> LoraAdapter:
    """The model with an adapter in all linear layers that changes it."""
    adapted = attach_lora(model, LoraSettings(**{"rank": 3, "alpha": 4, "targets": (ALL_LINEAR,), **settings}), seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in adapted.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return adapted


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    found: Tensor = model(input_ids=IDS, use_cache=False).logits
    return found.float()


@every
def test_experts_are_adapted_merged_saved_and_loaded(
    family: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    model = made(family, tokenizer, tmp_path / "base")
    plain = logits(model)
    adapted = moved(model)
    assert any(isinstance(module, ParamWrapper) for module in model.modules())
    expected = logits(model)
    assert (expected - plain).abs().max() > 0.05
    with fused_adapters(model), fused_experts(model):
        assert torch.allclose(logits(model), expected, atol=1e-4)
        with adapted.off():
            assert torch.allclose(logits(model), plain, atol=1e-5)
    save_model(model, tokenizer, tmp_path / "merged", state=adapted.merged_state())
    adapted.save(tmp_path / "adapter")
    base, merged = (load_file(tmp_path / name / "model.safetensors") for name in ("base", "merged"))
    assert {name: value.shape for name, value in merged.items()} == {n: value.shape for n, value in base.items()}
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert torch.allclose(logits(reloaded), expected, atol=2e-4)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert torch.allclose(logits(PeftModel.from_pretrained(again, tmp_path / "adapter").eval()), expected, atol=1e-4)


@pytest.mark.parametrize("rank", [1, 4, 8, 16])
@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "llama4_text"])
def test_any_rank_is_multiplied_in_parts(
    rank: int, family: str, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = made(family, tokenizer)
    moved(model, rank=rank)
    expected = logits(model)
    monkeypatch.setattr(_Stack, "whole", lambda _: pytest.fail("the matrices were added up"))
    with fused_adapters(model), fused_experts(model):
        assert torch.allclose(logits(model), expected, atol=1e-4)


@every
def test_the_gradients_are_pefts(family: str, tokenizer: PreTrainedTokenizerBase) -> None:
    adapted = moved(made(family, tokenizer))
    found = []
    for is_fused in (False, True):
        adapted.model.zero_grad()
        if is_fused:
            with fused_adapters(adapted.model), fused_experts(adapted.model):
                adapted.model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
        else:
            adapted.model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
        found.append([None if p.grad is None else p.grad.clone() for p in adapted.parameters()])
    assert sum(gradient is not None for gradient in found[0]) > 4
    for pefts, ours in zip(*found, strict=True):
        assert (pefts is None) == (ours is None)
        if pefts is not None and ours is not None:
            assert torch.allclose(pefts, ours, rtol=1e-3, atol=5e-5 * max(float(pefts.abs().max()), 1e-2))


def wrapper(adapted: LoraAdapter, name: str) -> ParamWrapper:
    return next(m for m in adapted.model.modules() if isinstance(m, ParamWrapper) and m.parameter_name == name)


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])  # one keeps its matrices as (out, in), one as (in, out)
def test_the_matrix_of_an_expert_by_hand(family: str, tokenizer: PreTrainedTokenizerBase) -> None:
    layer: Any = wrapper(moved(made(family, tokenizer), rank=2, alpha=5), "down_proj")
    down, up = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
    merged, weight = merged_experts(layer), layer.get_param()
    for expert in range(4):
        # A of expert e is rows 2 e and 2 e + 1; B's columns go round the experts once for each of the two ranks.
        product = up[:, [expert, 4 + expert]] @ down[[2 * expert, 2 * expert + 1]]
        delta = 2.5 * (product if family == "mixtral" else product.T)
        assert torch.allclose(merged[expert], weight[expert] + delta, atol=1e-6)
    left, right, scaling = factors(layer)
    assert torch.allclose(weight + scaling * left @ right, merged, atol=1e-6)


def test_each_expert_begins_as_a_layer_of_its_own_would(tokenizer: PreTrainedTokenizerBase) -> None:
    adapted = attach_lora(made("mixtral", tokenizer), LoraSettings(rank=3, targets=(ALL_LINEAR,)), seed=0)
    layer: Any = wrapper(adapted, "gate_up_proj")
    # Xavier over (3, 32): a standard deviation of (2 / 35)^0.5; over all experts at once it would be (2 / 44)^0.5.
    assert float(layer.lora_A[ADAPTER].weight.detach().std()) == pytest.approx((2 / 35) ** 0.5, rel=0.06)
    assert not layer.lora_B[ADAPTER].weight.any()


def test_in_bfloat16_the_matrices_are_not_rounded_together(tokenizer: PreTrainedTokenizerBase) -> None:
    exact = moved(made("mixtral", tokenizer)).model
    expected = logits(exact)
    rounded = nn.Module.to(made("mixtral", tokenizer), torch.bfloat16)
    adapted = moved(rounded)
    errors = []
    for block in (False, True):
        with fused_experts(rounded if block else nn.Module()):
            errors.append(float((logits(adapted.model) - expected).norm()))
    assert errors[1] < 1.05 * errors[0]


@pytest.mark.parametrize("also", [{"decomposed": True}, {"dropout": 0.1}])
def test_where_peft_cannot_adapt_a_parameter_the_experts_stay_frozen_and_that_is_said(
    also: dict[str, Any], tokenizer: PreTrainedTokenizerBase
) -> None:
    adapted = attach_lora(made("deepseek_v3", tokenizer), LoraSettings(targets=(ALL_LINEAR,), **also), seed=0)
    assert "down_proj" not in adapted.targets
    assert "as a parameter of a mixture of experts, without DoRA or dropout" in adapted.notes[0]
    assert (
        "of the layer weights stay frozen, because these layers have no adapter: mlp.experts.gate_up_proj"
        in adapted.notes[1]
    )
    with pytest.raises(ModelError, match=r"mlp.experts.down_proj.* cannot carry an adapter .*without DoRA or dropout"):
        attach_lora(made("mixtral", tokenizer), LoraSettings(targets=("down_proj",), **also), seed=0)


@pytest.mark.parametrize("rank", [8, 5])
def test_a_run_on_a_mixture_with_dense_blocks(
    rank: int, tmp_path: Path, rows: list[Row], tokenizer: PreTrainedTokenizerBase
) -> None:
    given = short_run(tmp_path, rows, made("deepseek_v3", tokenizer), tokenizer)
    report = run(given, target_modules="all-linear", rank=rank, alpha=rank, epochs=1, checkpoint_epochs=1)
    base, merged = (load_file(f / "model.safetensors") for f in (tmp_path / "target", report.model))
    assert {name: value.shape for name, value in merged.items()} == {n: value.shape for n, value in base.items()}
    changed = {name.split(".", 3)[-1] for name in base if not torch.equal(base[name], merged[name])}
    assert {"mlp.gate_proj.weight", "mlp.shared_experts.down_proj.weight", "mlp.experts.0.up_proj.weight"} <= changed
    loaded = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tmp_path / "target"), report.folder / "adapter"
    )
    expected = logits(AutoModelForCausalLM.from_pretrained(report.model).eval())
    assert torch.allclose(logits(loaded.eval()), expected, atol=1e-4)


@pytest.mark.slow
def test_a_run_goes_on_where_it_was_ended(tmp_path: Path, rows: list[Row], tokenizer: PreTrainedTokenizerBase) -> None:
    given = short_run(tmp_path, rows, made("mixtral", tokenizer), tokenizer) | {"target_modules": "all-linear"}
    whole = run(given, out=tmp_path / "whole")

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unlearn(UnlearnSettings.of(given), observer=After(5, stop))
    went_on = run(given, resume=True)
    assert "resumed after step 3" in [event["message"] for event in events(went_on.folder, "note")]
    assert same(model_of(whole), model_of(went_on))


def test_runs_cannot_share_routed_experts(tokenizer: PreTrainedTokenizerBase) -> None:
    settings = LoraSettings(rank=3, targets=(ALL_LINEAR,))
    shared = attach_lora(made("mixtral", tokenizer), settings, seed=0)
    with pytest.raises(ModelError, match="routed experts"):
        populate(shared, [settings, settings], seeds=[0, 1])


@pytest.mark.parametrize("family", FAST)
def test_experts_stored_in_16_bits_are_widened_for_each_product(
    family: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    narrow = nn.Module.to(made(family, tokenizer), torch.bfloat16)
    wide = made(family, tokenizer)
    wide.load_state_dict(narrow.state_dict())
    widen(narrow, torch.bfloat16)
    found = [moved(model) for model in (wide, narrow)]
    gradients = []
    for adapted in found:
        adapted.model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
        gradients.append([p.grad for p in adapted.parameters()])
    expected = logits(wide)
    assert torch.allclose(logits(narrow), expected, atol=1e-4)
    with narrow_running(narrow):
        assert torch.allclose(logits(narrow), expected, atol=1e-4)
    for exact, ours in zip(*gradients, strict=True):
        assert exact is not None
        assert ours is not None
        assert torch.allclose(ours, exact, rtol=1e-3, atol=1e-5 * max(float(exact.abs().max()), 1e-2))
    merged = [adapted.merged_state() for adapted in found]
    assert all(torch.equal(value.bfloat16(), merged[1][name].bfloat16()) for name, value in merged[0].items())


@contextmanager
def narrow_running(model: nn.Module) -> Iterator[None]:
    with fused_adapters(model), fused_experts(model):
        yield


@pytest.mark.parametrize("method", ["task-vector", "npo-ties"])
def test_what_a_method_makes_of_its_adapters_in_the_end_is_made_of_experts_too(
    method: str, tmp_path: Path, rows: list[Row], tokenizer: PreTrainedTokenizerBase
) -> None:
    given = short_run(tmp_path, rows, made("mixtral", tokenizer), tokenizer) | {"target_modules": "all-linear"}
    report = run(given, method=method, adapt="lora", rank=3, epochs=1)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "target").eval()
    plain, expected = logits(base), logits(AutoModelForCausalLM.from_pretrained(report.model).eval())
    assert (expected - plain).abs().max() > 1e-3
    loaded = PeftModel.from_pretrained(base, report.folder / "adapter").eval()
    assert torch.allclose(logits(loaded), expected, atol=1e-4)


@pytest.mark.slow
def test_runs_on_a_mixture_go_one_after_another(
    tmp_path: Path, rows: list[Row], tokenizer: PreTrainedTokenizerBase
) -> None:
    given = short_run(tmp_path, rows, made("mixtral", tokenizer), tokenizer) | {"target_modules": "all-linear"}
    runs = [UnlearnSettings.of({**given, "epochs": 1, "seed": seed, "out": tmp_path / str(seed)}) for seed in (0, 1)]
    heard: list[str] = []

    class Listening(Silent):
        def note(self, message: str) -> None:
            heard.append(message)

    together = run_population(runs, observer=Listening())
    assert any("routed experts" in note and "one after another" in note for note in heard)
    alone = run(given, epochs=1, seed=1, out=tmp_path / "alone")
    assert isinstance(together[1], RunReport)
    assert same(model_of(together[1]), model_of(alone))
