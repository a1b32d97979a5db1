"""16-bit checkpoints: in which precision they run here, and that widening their weights changes nothing but memory."""

import json
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from architecture_table import ARCHITECTURES, CASES, Case, random_model
from letheon.api import evaluate
from letheon.data.packing import pack
from letheon.data.rows import Row
from letheon.data.sequences import tokenise_all
from letheon.engine.paths import build_engine
from letheon.errors import SettingsError
from letheon.model import precision
from letheon.model.adapters import LoraSettings, attach_lora
from letheon.model.fingerprint import fingerprint
from letheon.model.loading import load_model, save_model
from letheon.model.precision import Asked, ProductRates, choose_precision
from letheon.model.targets import ALL_LINEAR
from letheon.model.widening import product_dtype
from letheon.settings import EvaluateSettings, UnlearnSettings
from letheon.unlearning.planning import check
from letheon.unlearning.planning.machine import Rates
from letheon.unlearning.populations import run_population
from letheon.unlearning.reading import plan
from running import After, run, same, short_run
from small import tiny_model

SLOW, FAST = ProductRates(bfloat16=0.9e9, float32=75e9), ProductRates(bfloat16=218e9, float32=96e9)
SIXTEEN_BITS = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def measured(monkeypatch: pytest.MonkeyPatch, rates: ProductRates) -> None:
    monkeypatch.setattr(precision, "product_rates", lambda: rates)


@pytest.fixture(autouse=True)
def _slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor without bfloat16 instructions."""
    measured(monkeypatch, SLOW)


@pytest.fixture
def given(
    tmp_path: Path, rows: list[Row], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    """Settings of a short run from a checkpoint in bfloat16."""
    nn.Module.to(model, torch.bfloat16)
    return {**short_run(tmp_path, rows, model, tokenizer), "keep": "last", "device": "cpu"}


def stored_in(dtype: torch.dtype, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> str:
    nn.Module.to(model, dtype)
    save_model(model, tokenizer, folder)
    return str(folder)


def memory(model: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("stored", "asked", "device", "rates", "chosen", "line"),
    [
        (torch.float32, "auto", "cpu", SLOW, "float32", "precision: weights and products in float32"),
        (torch.float32, "auto", "cuda", SLOW, "float32", "precision: weights and products in float32"),
        (torch.bfloat16, "auto", "cpu", FAST, "bfloat16",
         "precision: weights bfloat16 as stored, products in bfloat16 (218 against 96 GFLOP/s in float32)"),
        (torch.bfloat16, "auto", "cpu", SLOW, "widened",
         "precision: weights bfloat16 as stored, each matrix widened to float32 for its products "
         "(in bfloat16 they run at 0.9 against 75 GFLOP/s)"),
        (torch.bfloat16, "auto", "cuda", SLOW, "bfloat16",
         "precision: weights bfloat16 as stored, products in bfloat16"),
        (torch.float16, "auto", "cpu", FAST, "widened",
         "precision: weights float16 as stored, each matrix widened to float32 for its products"),
        (torch.float16, "auto", "cuda", FAST, "bfloat16",
         "precision: float16 weights rounded to bfloat16, products in bfloat16"),
        (torch.float32, "bfloat16", "cpu", SLOW, "bfloat16",
         "precision: bfloat16, as asked for; its products run here at 0.9 against 75 GFLOP/s in float32, 83 times "
         "slower; --dtype auto keeps 16-bit weights and multiplies them in float32"),
        (torch.float32, "bfloat16", "cpu", FAST, "bfloat16",
         "precision: bfloat16, as asked for; the checkpoint has float32"),
        (torch.bfloat16, "float32", "cpu", FAST, "float32",
         "precision: float32, as asked for; the checkpoint has bfloat16"),
        (torch.float32, "widened", "cpu", FAST, "float32",
         "precision: weights float32 as stored, so there is nothing to widen"),
    ],
)  # fmt: skip
def test_what_is_chosen_and_what_is_said(
    stored: torch.dtype,
    asked: Asked,
    device: str,
    rates: ProductRates,
    chosen: str,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measured(monkeypatch, rates)
    found = choose_precision(stored, asked=asked, device=device)
    assert (found.precision, found.line) == (chosen, line)


def test_a_run_that_goes_on_keeps_its_precision() -> None:
    found = choose_precision(torch.bfloat16, asked="auto", device="cpu", was="bfloat16")
    assert (found.precision, found.line) == ("bfloat16", "precision: bfloat16, as the run began")


def test_rates_are_measured_in_a_moment() -> None:
    rates = precision.ProductRates(precision._rate(torch.bfloat16, rows=8, width=64), 1e9)
    assert rates.bfloat16 > 1e5
    assert rates.slowdown == 1e9 / rates.bfloat16


EXPERTS = {
    "mixtral": (hf.MixtralConfig, {"num_local_experts": 4}),
    "olmoe": (hf.OlmoeConfig, {"num_experts": 4, "num_experts_per_tok": 2}),
    "qwen-3-moe": (hf.Qwen3MoeConfig, {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}),
    "granite-moe": (hf.GraniteMoeConfig, {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "gpt-oss": (hf.GptOssConfig, {"head_dim": 8, "num_local_experts": 4}),
}


@pytest.mark.parametrize("name", EXPERTS)
def test_stacks_of_experts_are_widened_layer_by_layer(
    name: str, rows: list[Row], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    made = random_model(Case(*EXPERTS[name]).config(len(tokenizer)))
    source = stored_in(torch.bfloat16, made, tokenizer, tmp_path / "target")
    widened, exact = (load_model(source, dtype=d, device="cpu").model for d in ("widened", "float32"))
    assert memory(widened) <= 0.53 * memory(exact)
    sequences = tokenise_all(rows, tokenizer, template="joined", max_length=200)
    batch = pack(sequences, is_forget=[True] * 6, row_index=range(6))
    found: list[tuple[Tensor, ...]] = []
    for model in (widened, exact):
        adapted = attach_lora(model, LoraSettings(rank=3), seed=1)
        engine = build_engine(model, batch, adapter_off=nullcontext)
        with engine.running():
            log_probs = engine.label_values(batch).log_probs
            log_probs.sum().backward()
        found.append((log_probs.detach(), *(p.grad for p in adapted.parameters() if p.grad is not None)))
    for ours, own in zip(*found, strict=True):
        assert torch.equal(ours, own)


@pytest.mark.parametrize("dtype", SIXTEEN_BITS.values(), ids=SIXTEEN_BITS)
@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.no_grad()
def test_a_widened_model_is_the_float32_one_bit_for_bit(
    name: str, dtype: torch.dtype, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    source = stored_in(dtype, random_model(CASES[name].config(len(tokenizer))), tokenizer, tmp_path / "target")
    widened, exact = (load_model(source, dtype=d, device="cpu").model for d in ("widened", "float32"))
    ids = torch.arange(5, 25)[None]
    assert torch.equal(widened(ids, use_cache=False).logits, exact(ids, use_cache=False).logits)
    save_model(widened, tokenizer, tmp_path / "again")
    before, after = (load_file(tmp_path / folder / "model.safetensors") for folder in ("target", "again"))
    assert {name: t.dtype for name, t in before.items()} == {name: t.dtype for name, t in after.items()}
    assert same(before, after)
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert config["dtype"] == str(dtype).removeprefix("torch.")


@pytest.mark.parametrize("kind", [hf.MambaConfig, hf.Mamba2Config])
@torch.no_grad()
def test_models_that_read_their_matrices_themselves_are_float32_in_memory(
    kind: Any, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    # The first multiplies them outside of their layers, the second rounds its states to their dtype.
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1}
    made = random_model(kind(vocab_size=len(tokenizer), pad_token_id=1, bos_token_id=0, eos_token_id=0, **sizes))
    source = stored_in(torch.bfloat16, made, tokenizer, tmp_path / "target")
    notes: list[str] = []
    widened = load_model(source, dtype="widened", device="cpu", note=notes.append).model
    exact = load_model(source, dtype="float32", device="cpu").model
    ids = torch.arange(5, 25)[None]
    assert torch.equal(widened(ids).logits, exact(ids).logits)
    assert len(notes) == 1
    assert "all weights are float32 in memory" in notes[0]
    save_model(widened, tokenizer, tmp_path / "again")
    before, after = (load_file(tmp_path / folder / "model.safetensors") for folder in ("target", "again"))
    assert same(before, after)


@pytest.mark.parametrize("architecture", ["olmo", "llama", "gpt2", "gemma", "gpt-neox"])
def test_a_widened_model_takes_half_the_memory(
    architecture: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    source = stored_in(torch.bfloat16, tiny_model(architecture, tokenizer), tokenizer, tmp_path / "target")
    widened, exact = load_model(source, dtype="auto", device="cpu").model, load_model(source, device="cpu").model
    assert product_dtype(widened) == torch.float32
    assert memory(widened) <= 0.53 * memory(exact)  # norms and biases are float32, much of so small a model


def test_weights_that_a_checkpoint_has_in_float32_stay_exact(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    source = stored_in(torch.bfloat16, tiny_model("llama", tokenizer), tokenizer, tmp_path / "target")
    path = tmp_path / "target" / "model.safetensors"
    generator = torch.Generator().manual_seed(0)
    wide = ("model.norm.weight", "model.layers.1.mlp.up_proj.weight")
    state = load_file(path)
    state |= {name: torch.randn(state[name].shape, generator=generator) for name in wide}
    save_file(state, path, metadata={"format": "pt"})
    widened, exact = (load_model(source, dtype=d, device="cpu").model for d in ("widened", "float32"))
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        assert torch.equal(widened(ids).logits, exact(ids).logits)
    save_model(widened, tokenizer, tmp_path / "again")
    assert same(state, load_file(tmp_path / "again" / "model.safetensors"))


@pytest.mark.parametrize("architecture", ["olmo", "gpt2", "gemma2"])
def test_gradients_are_those_of_the_float32_model(
    architecture: str, rows: list[Row], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    source = stored_in(torch.bfloat16, tiny_model(architecture, tokenizer), tokenizer, tmp_path / "target")
    sequences = tokenise_all(rows, tokenizer, template="joined", max_length=200)
    batch = pack(sequences, is_forget=[True] * 6, row_index=range(6))
    found: list[tuple[Tensor, ...]] = []
    for dtype in ("widened", "float32"):
        model = load_model(source, dtype=dtype, device="cpu").model
        adapted = attach_lora(model, LoraSettings(rank=3, targets=(ALL_LINEAR,)), seed=1)
        engine = build_engine(model, batch, adapter_off=nullcontext)
        assert engine.path == "packed", engine.notes
        assert len(engine.gated) == (
            0 if architecture == "gpt2" else 2 if architecture != "olmo" else len(engine.gated)
        )
        with engine.running():
            log_probs = engine.label_values(batch).log_probs
            log_probs.sum().backward()
        found.append((log_probs.detach(), *(p.grad for p in adapted.parameters() if p.grad is not None)))
    assert len(found[0]) > 8
    for ours, own in zip(*found, strict=True):
        assert torch.equal(ours, own)


def test_only_narrow_matrices_are_kept_for_the_backward_pass(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    source = stored_in(torch.bfloat16, tiny_model("llama", tokenizer), tokenizer, tmp_path / "target")
    model = load_model(source, dtype="widened", device="cpu").model.requires_grad_(False)
    shapes = {tuple(module.weight.shape) for module in model.modules() if isinstance(module, nn.Linear)}
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    states = torch.randn(1, 5, 32, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(inputs_embeds=states).logits.sum().backward()
    matrices = [tensor for tensor in kept if tuple(tensor.shape) in shapes]
    assert len(matrices) >= 15
    assert {tensor.dtype for tensor in matrices} == {torch.bfloat16}
    assert states.grad is not None


def weights(folder: Path) -> Mapping[str, Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def test_a_run_chooses_it_records_it_and_ends_where_a_float32_run_does(given: dict[str, Any], tmp_path: Path) -> None:
    report = run(given)
    exact = run(given, out=tmp_path / "exact", dtype="float32")
    assert yaml.safe_load((report.folder / "run.yaml").read_text())["dtype"] == "widened"
    found = report.provenance["precision"]
    assert found.pop("chosen").startswith("precision: weights bfloat16 as stored, each matrix widened")
    assert found == {"setting": "widened", "weights": "bfloat16", "products": "float32", "saved": "bfloat16"}
    assert exact.provenance["precision"]["saved"] == "float32"
    assert same(weights(report.folder), weights(exact.folder))
    ours, theirs = (load_file(found.model / "model.safetensors") for found in (report, exact))
    assert {value.dtype for value in ours.values()} == {torch.bfloat16}
    assert {value.dtype for value in theirs.values()} == {torch.float32}
    # The merged weights are rounded once, at the end.
    assert same(ours, {name: value.bfloat16() for name, value in theirs.items()})


@pytest.mark.parametrize(
    "changed",
    [
        {"target_modules": ("all-linear",), "gradient_checkpointing": True},
        {"target_modules": ("all-linear",), "dora": True, "lora_dropout": 0.1},
        {"adapt": "weights", "learning_rate": 1e-3},
        {"method": "neko", "store_lower": True, "layers": "1:"},
    ],
    ids=["checkpointing", "dora", "weights", "lower"],
)
@pytest.mark.slow
def test_runs_of_other_kinds_end_where_float32_runs_do(
    changed: dict[str, Any], given: dict[str, Any], tmp_path: Path
) -> None:
    ours = run(given, **changed)
    exact = run(given, **changed, out=tmp_path / "exact", dtype="float32")
    found, expected = (load_file(report.model / "model.safetensors") for report in (ours, exact))
    assert same(found, {name: value.bfloat16() for name, value in expected.items()})


@pytest.mark.parametrize("name", EXPERTS)
@pytest.mark.slow
def test_adapted_experts_end_where_float32_ones_do(
    name: str, given: dict[str, Any], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    source = stored_in(
        torch.bfloat16, random_model(Case(*EXPERTS[name]).config(len(tokenizer))), tokenizer, tmp_path / "experts"
    )
    changed = {"model": source, "target_modules": ("all-linear",), "epochs": 1, "rank": 4}
    ours, exact = run(given, **changed), run(given, **changed, out=tmp_path / "exact", dtype="float32")
    found, expected = (load_file(report.model / "model.safetensors") for report in (ours, exact))
    assert same(found, {name: value.bfloat16() for name, value in expected.items()})


@pytest.mark.slow
def test_the_reference_of_one_precision_is_not_taken_for_that_of_another(given: dict[str, Any], tmp_path: Path) -> None:
    # OLMo has neither norms' weights nor biases: in memory both modes hold the same bytes.
    widened, rounded = (load_model(given["model"], dtype=d, device="cpu").model for d in ("widened", "bfloat16"))
    assert same(widened.state_dict(), rounded.state_dict())
    assert fingerprint(widened) != fingerprint(rounded)
    stores = {
        run(given, out=tmp_path / dtype, dtype=dtype).provenance["reference_store"]
        for dtype in ("widened", "bfloat16", "float32")
    }
    assert len(stores) == 3


@pytest.mark.slow
def test_resumed_on_a_machine_that_multiplies_otherwise_it_goes_on_as_it_began(
    given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(Exception):
        pass

    def kill() -> None:
        raise Killed

    from letheon.unlearning.run import unlearn

    with pytest.raises(Killed):
        unlearn(UnlearnSettings.of(given), observer=After(5, kill))
    measured(monkeypatch, FAST)
    report = run(given, resume=True)
    assert report.provenance["precision"]["setting"] == "widened"
    measured(monkeypatch, SLOW)
    assert same(weights(report.folder), weights(run(given, out=tmp_path / "whole").folder))
    with pytest.raises(SettingsError, match="dtype differ from the run"):
        run(given, resume=True, dtype="bfloat16")


@pytest.mark.slow
def test_members_of_a_population_are_those_of_float32_ones(given: dict[str, Any], tmp_path: Path) -> None:
    def members(dtype: str) -> list[UnlearnSettings]:
        return [
            UnlearnSettings.of({**given, "dtype": dtype, "seed": seed, "out": tmp_path / dtype / str(seed)})
            for seed in (0, 1)
        ]

    for dtype in ("auto", "float32"):
        run_population(members(dtype))
    for seed in ("0", "1"):
        folder = tmp_path / "auto" / seed
        assert yaml.safe_load((folder / "run.yaml").read_text())["dtype"] == "widened"
        assert same(weights(folder), weights(tmp_path / "float32" / seed))


def test_evaluation_of_a_widened_model_is_that_of_the_float32_one(given: dict[str, Any], tmp_path: Path) -> None:
    texts = [json.dumps({"document": f"{name} keeps bees in the village of Harrow."}) for name in "ABCD"]
    (tmp_path / "members.jsonl").write_text("\n".join(texts[:2]))
    (tmp_path / "others.jsonl").write_text("\n".join(texts[2:]))
    found = []
    for dtype in ("auto", "float32"):
        settings = EvaluateSettings.of(
            {
                **{name: given[name] for name in ("model", "forget", "retain", "device")},
                "out": tmp_path / f"scores-{dtype}",
                "members": tmp_path / "members.jsonl",
                "nonmembers": tmp_path / "others.jsonl",
                "max_new_tokens": 8,
                "dtype": dtype,
            }
        )
        found.append(evaluate(settings))
    assert [p.generation for p in found[0].predictions] == [p.generation for p in found[1].predictions]
    assert found[0].results.scores == found[1].results.scores
    assert found[0].results.settings["products"] == "float32"
    assert found[0].results.settings["dtype"] == "bfloat16"


@pytest.mark.slow
def test_a_plan_knows_the_bytes(given: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "measure_rates", lambda *_, **__: Rates(trunk=1e11, head=1e11))
    dtypes = ("auto", "bfloat16", "float32")
    plans = {dtype: plan(UnlearnSettings.of({**given, "dtype": dtype})).plan for dtype in dtypes}

    def bytes_of(dtype: str, name: str) -> int:
        return sum(part.bytes for part in plans[dtype].allocations if part.name.startswith(name))

    assert bytes_of("auto", "weights in 16 bits") == bytes_of("bfloat16", "weights in bfloat16")
    assert bytes_of("auto", "weights in 16 bits") <= 0.52 * bytes_of("float32", "weights in float32")
    assert bytes_of("auto", "activations") == pytest.approx(bytes_of("float32", "activations"), rel=0.02)
