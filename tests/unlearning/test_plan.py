"""What a plan says, against what a run has: bytes, tokens, operations; refusals and the advice in them."""

import dataclasses
import json
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from architecture_table import random_model
from expert_families import config_of
from letheon.cli.main import cli
from letheon.data.packing import pack
from letheon.data.rows import Row, write_rows
from letheon.data.schedules import MixedSchedule, steps_from
from letheon.data.sequences import TokenSequence
from letheon.engine.engine import Engine
from letheon.engine.head import head_of
from letheon.engine.patches.gated import gated_blocks
from letheon.engine.patches.lower import first_layer_run
from letheon.engine.patches.trimming import Selection
from letheon.engine.reference import build_reference
from letheon.engine.values import token_values
from letheon.errors import SettingsError
from letheon.model.adapted import Adapted
from letheon.model.architectures import new_model
from letheon.model.loading import save_model
from letheon.model.widening import widen
from letheon.objective.catalogue import get_method
from letheon.objective.parts import Term, compose, needs_of
from letheon.objective.values import roles_of
from letheon.settings import UnlearnSettings
from letheon.training.optimiser import build_optimiser
from letheon.training.randomness import dropout_of_step, dropouts_of
from letheon.unlearning import planning, probes, reading
from letheon.unlearning.interim import KeptRows
from letheon.unlearning.planning import check, machine
from letheon.unlearning.planning.advice import Advice, advise, changed, is_tight
from letheon.unlearning.planning.demand import Data, Demand, demand_of
from letheon.unlearning.planning.estimate import Place, Plan, estimate
from letheon.unlearning.planning.machine import Machine
from letheon.unlearning.planning.operations import FORMULAS, counted_flops
from letheon.unlearning.planning.trace import _Live, empty_model
from letheon.unlearning.prepare import adapt
from letheon.unlearning.resolve import resolve_settings, terms_of
from running import events, run, short_run
from small import tiny_model

GIB = 2**30
PLACES: tuple[Place, ...] = ("device", "host")

SEQUENCES = [
    TokenSequence(tuple(range(2, 42)), 30),
    TokenSequence(tuple(range(2, 32)), 10),
    TokenSequence(tuple(range(2, 52)), 25),
    TokenSequence(tuple(range(2, 22)), 15),
]
"""Two forget and two retain rows of 40, 30, 50 and 20 tokens, of which 10, 20, 25 and 5 are answer tokens."""


@pytest.fixture(autouse=True)
def _rates_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rates take a quarter of a second to measure, and no number here depends on them."""
    monkeypatch.setattr(check, "measure_rates", lambda *_, **__: machine.Rates(trunk=1e11, head=1e11))


def settings_of(**given: Any) -> UnlearnSettings:
    values = {"model": "m", "forget": "f", "retain": "r", "out": "o", **given}
    return resolve_settings(UnlearnSettings.of(values))


def engine_of(model: PreTrainedModel, adapted: Adapted, settings: UnlearnSettings) -> Engine:
    head = head_of(model)
    frozen = None if head.weight.requires_grad else head
    return Engine(
        model,
        "packed",
        adapter_off=adapted.off,
        frozen_head=frozen,
        selection=Selection(),
        recomputes=settings.gradient_checkpointing,
        gated=gated_blocks(model),
        begins_at=first_layer_run(model) if settings.store_lower else 0,
    )


def terms_for(settings: UnlearnSettings) -> tuple[Term, ...]:
    return terms_of(get_method(settings.method), settings)


@contextmanager
def real_step(model: PreTrainedModel, settings: UnlearnSettings) -> Iterator[tuple[Engine, Any]]:
    """An engine with everything ready for one step over the four rows, and a function that computes its loss."""
    adapted = adapt(model, settings)
    engine, terms = engine_of(model, adapted, settings), terms_for(settings)
    needs = needs_of(terms)
    store = build_reference(engine, SEQUENCES, num_forget_rows=2, num_retain_rows=2, needs=needs)
    batch = pack(SEQUENCES, is_forget=[True, True, False, False], row_index=range(4))

    def loss() -> Tensor:
        return compose(terms, token_values(engine, store, batch, needs=needs), roles_of(batch)).total

    with engine.running():
        yield engine, loss


def plan_of(model: PreTrainedModel, settings: UnlearnSettings, **given: Any) -> Plan:
    data = Data(trained=SEQUENCES, num_forget=2, num_retain=2, scored=SEQUENCES)
    schedule = MixedSchedule(4, settings.batch_size, settings.seed, settings.epochs)
    demand = demand_of(settings, data, schedule=schedule, method=get_method(settings.method))
    return estimate(model.config, settings, demand, terms=terms_for(settings), device="cpu", **given)


def bytes_of(plan: Plan, name: str) -> int:
    return sum(part.bytes for part in plan.allocations if part.name == name and part.place != "disk")


@pytest.mark.parametrize("adapted", ["lora", "weights"])
@pytest.mark.parametrize("architecture", ["olmo", "llama", "gpt2", "gemma2"])
def test_activations_are_what_autograd_keeps(
    architecture: str, adapted: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    settings = settings_of(adapt=adapted, method="gd")
    model = tiny_model(architecture, tokenizer)
    planned = bytes_of(plan_of(model, settings, counts_work=False), "activations")

    with real_step(model, settings) as (engine, _):
        batch = pack(SEQUENCES, is_forget=[True] * 4, row_index=range(4))
        own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
        kept: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            states = engine.states(batch)
        assert states.shape == (60, 32)

    # The plan also counts what is alive without being kept: the last states, ids, rotations.
    assert sum(kept.values()) <= planned <= 1.06 * sum(kept.values())


@pytest.mark.parametrize(
    ("method", "architecture", "given"),
    [
        ("low-rank-npo", "olmo", {}),
        ("low-rank-npo", "gemma2", {"dtype": "bfloat16"}),
        ("low-rank-npo", "olmo", {"dtype": "bfloat16", "gradient_checkpointing": True}),
        ("neko", "llama", {"gradient_checkpointing": True}),
        ("low-rank-npo", "llama", {"layers": "1:", "store_lower": True}),
        ("neko", "llama", {}),
        ("neko", "olmo", {"dtype": "bfloat16"}),
        ("neko", "olmo", {"dtype": "widened"}),
        ("low-rank-npo", "gemma2", {"dtype": "widened", "target_modules": "all-linear"}),
        ("npo", "gpt2", {}),
        ("low-rank-npo", "llama", {"lora_dropout": 0.1, "target_modules": "all-linear"}),
        ("undial", "olmo", {}),
        ("rmu", "llama", {"coefficients": {"layer": 1}, "layers": "0:2"}),
    ],
)
def test_peak_of_a_step_is_that_of_its_tensors(
    method: str, architecture: str, given: dict[str, Any], tokenizer: PreTrainedTokenizerBase
) -> None:
    settings = settings_of(method=method, **given)
    model = in_precision(tiny_model(architecture, tokenizer), settings)
    found = plan_of(model, settings, counts_work=False)
    planned = sum(part.bytes for part in found.allocations if part.when == "step")

    with real_step(model, settings) as (_, loss), dropout_of_step(dropouts_of(model), seed=0, step=0), _Live() as live:
        loss().backward()

    assert planned == pytest.approx(live.peak, rel=0.01)


def in_precision(model: PreTrainedModel, settings: UnlearnSettings) -> PreTrainedModel:
    if settings.dtype in ("bfloat16", "widened"):
        torch.nn.Module.to(model, torch.bfloat16)
    if settings.dtype == "widened":
        widen(model, torch.bfloat16)
    return model


@pytest.mark.parametrize("targets", ["q_proj", "all-linear"])
@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_peak_of_a_step_with_experts(family: str, targets: str, tokenizer: PreTrainedTokenizerBase) -> None:
    settings = settings_of(target_modules=targets, rank=8)
    model = random_model(config_of(family, vocab_size=len(tokenizer)))
    found = plan_of(model, settings, counts_work=False)
    assert not any("without values" in note for note in found.notes)
    planned = sum(part.bytes for part in found.allocations if part.when == "step")
    with real_step(model, settings) as (_, loss), _Live() as live:
        loss().backward()
    # Which expert gets how many rows is not known beforehand.
    assert planned == pytest.approx(live.peak, rel=0.05)


def test_second_backward_finds_the_first_gradients(tokenizer: PreTrainedTokenizerBase) -> None:
    settings = settings_of(adapt="weights", method="gd", general="none", batch_size=4, max_batch_tokens=90)
    model = tiny_model("olmo", tokenizer)
    found = plan_of(model, settings, counts_work=False)
    planned = sum(part.bytes for part in found.allocations if part.when == "step")
    assert found.demand.is_split
    assert bytes_of(found, "gradients of earlier pieces") == 4 * found.num_trained

    with real_step(model, settings) as (engine, loss):
        loss().backward()
        # The larger of the two pieces that 140 tokens are cut into has at most 90.
        piece = found.demand.largest
        assert 50 <= piece.num_tokens <= 90
        batch = pack(piece.sequences, is_forget=[True] * len(piece.sequences), row_index=range(len(piece.sequences)))
        with _Live() as live:
            engine.label_values(batch).log_probs.sum().backward()

    assert planned == pytest.approx(live.peak + 4 * found.num_trained, rel=0.02)


def test_planning_holds_no_values_and_leaves_the_random_state(tokenizer: PreTrainedTokenizerBase) -> None:
    config = tiny_model("olmo", tokenizer).config
    before = torch.random.get_rng_state()
    model = empty_model(config, "bfloat16")
    assert all(parameter.is_meta and parameter.dtype == torch.bfloat16 for parameter in model.parameters())
    plan_of(tiny_model("olmo", tokenizer), settings_of())
    assert torch.equal(torch.random.get_rng_state(), before)
    assert config.pad_token_id is not None  # left as it was


@pytest.mark.parametrize("architecture", ["llama", "gpt-neox"])
def test_weights_are_counted_once_where_the_head_is_tied(architecture: str, tokenizer: PreTrainedTokenizerBase) -> None:
    model = tiny_model(architecture, tokenizer)
    is_tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert is_tied == (architecture == "llama")

    found = plan_of(model, settings_of(), counts_work=False)

    assert found.num_parameters == sum(parameter.numel() for parameter in model.parameters())
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    assert bytes_of(found, "weights in float32") == 4 * found.num_parameters + buffers


@pytest.mark.parametrize(
    "given", [{"rank": 3}, {"adapt": "weights"}, {"adapt": "weights", "dtype": "bfloat16"}, {"dtype": "widened"}]
)
def test_trained_parameters_and_moments(given: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> None:
    settings = settings_of(**given)
    model = in_precision(tiny_model("olmo", tokenizer), settings)
    found = plan_of(model, settings, counts_work=False)
    adapted = adapt(model, settings)
    optimiser = build_optimiser(adapted.parameters(), name="adamw", learning_rate=0.1, weight_decay=0.0)
    for parameter in adapted.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()

    moments = [value for slots in optimiser.state.values() for value in slots.values() if value.ndim]
    trained = sum(parameter.numel() * 4 for parameter in adapted.parameters())
    assert 4 * found.num_trained == trained
    assert bytes_of(found, "moments of the optimiser") == sum(m.numel() * m.element_size() for m in moments)
    beside = bytes_of(found, "adapter") + bytes_of(found, "float32 copies of trained weights")
    assert beside == (trained if settings.adapt == "lora" or settings.dtype == "bfloat16" else 0)


def deep_model(tokenizer: PreTrainedTokenizerBase, **given: Any) -> PreTrainedModel:
    return new_model("olmo", tokenizer=tokenizer, width=64, num_layers=8, num_heads=2, seed=0, **given)


OPERATIONS: list[tuple[str, dict[str, Any]]] = [
    ("olmo", {"method": "gd"}),
    ("olmo", {"method": "gd", "layers": "1:", "store_lower": True}),
    ("llama", {"method": "gd", "gradient_checkpointing": True}),
    ("gpt2", {"method": "gd", "adapt": "weights"}),
    ("gemma2", {"method": "low-rank-npo", "kl": "reverse"}),
    ("gpt-neox", {"method": "undial"}),
    ("llama", {"method": "rmu", "coefficients": {"layer": 1}, "layers": "0:2"}),
    ("llama", {"method": "gd", "dora": True, "target_modules": ("q_proj", "v_proj")}),
    ("olmo", {"method": "gd", "dtype": "widened", "target_modules": "all-linear"}),
]


FAST_OPERATIONS = ("gpt2", "gemma2", "gpt-neox")


@pytest.mark.parametrize(
    ("architecture", "given"),
    [pytest.param(*case, marks=() if case[0] in FAST_OPERATIONS else pytest.mark.slow) for case in OPERATIONS],
    ids=str,
)
def test_operations_are_those_of_a_step(
    architecture: str, given: dict[str, Any], tokenizer: PreTrainedTokenizerBase
) -> None:
    settings = settings_of(epochs=1, batch_size=4, **given)
    model = in_precision(tiny_model(architecture, tokenizer), settings)
    planned = next(work.flops for work in plan_of(model, settings).work if work.name == "steps")

    with real_step(model, settings) as (engine, loss):
        counted = counted_flops(engine, loss)

    # The magnitudes that DoRA works out anew in each step count for each of the sample's rows.
    assert planned == pytest.approx(counted.trunk + counted.attention + counted.head, rel=0.01)


@pytest.mark.parametrize("given", [{"method": "gd"}, {"method": "low-rank-npo", "kl": "reverse"}, {"method": "undial"}])
@pytest.mark.slow
def test_operations_of_a_run_are_those_of_its_steps(given: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> None:
    settings = settings_of(epochs=1, batch_size=3, **given)
    model, terms = deep_model(tokenizer), terms_for(settings)
    drawn = random.Random(0)
    lengths = [drawn.randint(20, 200) for _ in range(25)]
    sequences = [TokenSequence(tuple(range(2, 2 + num)), drawn.randint(num // 6, num // 2)) for num in lengths]
    schedule = MixedSchedule(25, 3, settings.seed, 1)
    data = Data(trained=sequences, num_forget=10, num_retain=15, scored=sequences)
    demand = demand_of(settings, data, schedule=schedule, method=get_method(settings.method))
    plan = estimate(model.config, settings, demand, terms=terms, device="cpu")
    planned = {work.name: work for work in plan.work}

    adapted = adapt(model, settings)
    engine, needs = engine_of(model, adapted, settings), needs_of(terms)
    store = build_reference(engine, sequences, num_forget_rows=10, num_retain_rows=15, needs=needs)

    def loss(rows: list[int]) -> Tensor:
        batch = pack([sequences[row] for row in rows], is_forget=[row < 10 for row in rows], row_index=rows)
        return compose(terms, token_values(engine, store, batch, needs=needs), roles_of(batch)).total

    with engine.running():
        steps = [counted_flops(engine, partial(loss, list(rows))) for _, rows in steps_from(schedule, 0, end=9)]

    assert planned["steps"].trunk == pytest.approx(sum(step.trunk + step.attention for step in steps), rel=0.02)
    assert planned["steps"].head == pytest.approx(sum(step.head for step in steps), rel=0.05)


@pytest.mark.parametrize(("adapted", "factor"), [("lora", 4), ("weights", 8)])
def test_operations_of_the_head_by_hand(adapted: str, factor: int, tokenizer: PreTrainedTokenizerBase) -> None:
    # Logits, and the gradient of the states from them; a trained head forms its logits twice and has a gradient too.
    settings = settings_of(adapt=adapted, method="gd", epochs=1, batch_size=4)
    model = tiny_model("olmo", tokenizer)
    once = 60 * model.get_output_embeddings().weight.numel()
    planned = {work.name: work for work in plan_of(model, settings).work}
    assert planned["steps"].head == factor * once
    # The reference says how likely the answers are, and which tokens are likeliest.
    assert planned["reference pass"].head == 4 * once
    assert planned["scoring, 1 times"].head == 2 * once


@pytest.mark.parametrize("is_causal", [False, True])
def test_operations_of_kernels_that_torch_does_not_count(is_causal: bool) -> None:
    # 2 heads, 6 queries, 6 keys, width 4: 72 pairs, half of them if causal. A product of every pair takes 2 * 4
    # operations: two products in the forward, five in the backward.
    query, key, value = (torch.ones(1, 2, 6, 4, requires_grad=True) for _ in range(3))
    pairs = 36 if is_causal else 72
    with FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter:
        output = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=is_causal)
        assert counter.get_total_flops() == pairs * 2 * 8
        output.sum().backward()
    assert counter.get_total_flops() == pairs * 7 * 8
    with FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter:
        torch.zeros(3, 5).addmm_(torch.ones(3, 7), torch.ones(7, 5))
    assert counter.get_total_flops() == 2 * 3 * 5 * 7


@pytest.mark.slow
def test_operations_are_guessed_where_nothing_can_be_run_without_values(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, model = settings_of(epochs=1, batch_size=4), deep_model(tokenizer)
    counted = plan_of(model, settings)

    def fails(*_: object) -> None:
        raise RuntimeError("needs values")

    monkeypatch.setattr("letheon.unlearning.planning.estimate.trace_step", fails)
    guessed = plan_of(model, settings)
    assert "operations are estimated" in guessed.notes[0]
    assert [work.name for work in guessed.work] == [work.name for work in counted.work]
    for guess, count in zip(guessed.work, counted.work, strict=True):
        assert guess.trunk == pytest.approx(count.trunk, rel=0.25)


CASES: list[dict[str, Any]] = [
    {},
    {"max_steps": 4},
    {"schedule": "paired", "retain_batch_size": 3},
    {"schedule": "alternating"},
    {"method": "sugd", "layers": ":", "chunk_size": 2},
    {"method": "idk-dpo", "max_batch_tokens": 40},
    {"method": "neko"},
    {"method": "npo-ties", "keep": "last"},
    {"method": "undial"},
    {"validation": 0.34, "score_at": "1,2.5"},
    {"span": "text", "dtype": "bfloat16"},
    {"patience": 9, "patience_on": "retain_kl", "validation": 0.34},
]


FAST = [
    {"method": "idk-dpo", "max_batch_tokens": 40},
    {"method": "npo-ties", "keep": "last"},
    {"validation": 0.34, "score_at": "1,2.5"},
    {"patience": 9, "patience_on": "retain_kl", "validation": 0.34},
]
"""The cases that differ most from each other; the others run with the slow tests."""


@pytest.mark.parametrize(
    "given", [pytest.param(case, marks=() if case in FAST else pytest.mark.slow) for case in CASES], ids=str
)
def test_tokens_store_and_scorings_are_those_of_the_run(
    given: dict[str, Any],
    tmp_path: Path,
    rows: list[Row],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = short_run(tmp_path, rows, model, tokenizer) | {"end_of_sequence": "retain", **given}
    planned = reading.plan(UnlearnSettings.of(values))
    assert not (tmp_path / "run").exists()

    held: list[int] = []
    real = probes._kept_rows

    def watched(*given: Any) -> KeptRows:
        kept = real(*given)
        held.append(kept.reference.num_bytes)
        return kept

    monkeypatch.setattr(probes, "_kept_rows", watched)
    report = run(values)

    assert bool(held) == any("the retain KL takes" in note for note in planned.plan.notes) == ("patience_on" in given)
    assert planned.refusal is None
    demand = planned.plan.demand
    assert demand.trained.read == report.num_tokens
    assert demand.num_steps == report.num_steps
    assert bytes_of(planned.plan, "values of the reference") == report.provenance["reference_store_bytes"]
    assert bytes_of(planned.plan, "values of the reference for the KL of scorings") == sum(held)
    last = get_method(report.provenance["method"]["name"]).finish != "keep"  # not in the log: scored when it is over
    # At its start a run is scored by a pass of its own only where it trains on other tokens than it scores.
    apart = "validation" in given or given.get("span") == "text"
    assert demand.num_scorings == len(events(tmp_path / "run", "interim")) + last + apart


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerBase) -> Path:
    """A checkpoint folder of 1.6 GiB in float32, without its weights: three layers of width 4096."""
    folder = tmp_path_factory.mktemp("wide")
    save_model(tiny_model("llama", tokenizer), tokenizer, folder)
    config = tiny_model("llama", tokenizer).config
    config.update({"hidden_size": 4096, "intermediate_size": 8192, "num_hidden_layers": 3, "num_attention_heads": 32})
    config.update({"num_key_value_heads": 32, "head_dim": 128})
    config.save_pretrained(folder)
    _write_hollow_weights(folder / "model.safetensors", num_bytes=1_677_721_600)
    return folder


def _write_hollow_weights(path: Path, *, num_bytes: int) -> None:
    """A whole safetensors file of zeros that take no room on the disk."""
    header = json.dumps({"zeros": {"dtype": "U8", "shape": [num_bytes], "data_offsets": [0, num_bytes]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(path, 8 + len(header) + num_bytes)


@pytest.fixture
def too_large(tmp_path: Path, wide: Path, rows: list[Row], model: Any, tokenizer: Any) -> dict[str, Any]:
    """Full fine-tuning of the wide model: weights, moments and gradients take 16 bytes a parameter, 6.6 GiB."""
    return short_run(tmp_path, rows, model, tokenizer) | {"model": str(wide), "method": "neko"}


def with_memory(monkeypatch: pytest.MonkeyPatch, gibibytes: float) -> Machine:
    fake = Machine(device="cpu", memory=int(gibibytes * GIB))
    monkeypatch.setattr(check, "machine_of", lambda _: fake)
    return fake


@pytest.mark.slow
def test_refused_before_weights_are_loaded(monkeypatch: pytest.MonkeyPatch, too_large: dict[str, Any]) -> None:
    with_memory(monkeypatch, 5.0)
    monkeypatch.setattr("letheon.unlearning.run.load_model_of", lambda *_, **__: pytest.fail("weights were loaded"))

    with pytest.raises(SettingsError) as refused:
        run(too_large)

    message = str(refused.value)
    assert "5.0 GiB free" in message
    assert "what would fit: --adapt lora" in message
    assert not Path(too_large["out"]).exists()


@pytest.mark.parametrize(("gibibytes", "needed"), [(3.0, {"adapt", "dtype"}), (5.0, {"adapt"})])
@pytest.mark.slow
def test_advised_settings_fit(
    monkeypatch: pytest.MonkeyPatch, too_large: dict[str, Any], gibibytes: float, needed: set[str]
) -> None:
    fake = with_memory(monkeypatch, gibibytes)
    settings, inputs = reading.read(UnlearnSettings.of(too_large), get_method("neko"))
    replan = partial(planning.plan_run, inputs=inputs, machine=fake)

    found = advise(settings, replan(settings), fake, replan=replan)

    assert [set(advice.changes) - {"target_modules"} for advice in found] == [needed]
    for advice in found:
        # What a user gets who follows the words of the advice.
        again = reading.read(UnlearnSettings.of({**too_large, **flags_of(advice)}), get_method("neko"))[0]
        assert not is_tight(replan(again), fake)
        assert replan(again).needed(PLACES) == advice.plan.needed(PLACES)


def flags_of(advice: Advice) -> dict[str, str | bool]:
    pairs = [words.split(maxsplit=1) for words in advice.flags.removeprefix("--").split(" --")]
    return {name.replace("-", "_"): rest[0] if rest else True for name, *rest in pairs}


@pytest.mark.slow
def test_smaller_pieces_are_advised_where_activations_do_not_fit(
    too_large: dict[str, Any], rows: list[Row], tmp_path: Path
) -> None:
    long = [dataclasses.replace(row, answer=f"{row.id} " + "bees " * 200) for row in rows]
    write_rows(long[:3], tmp_path / "forget.jsonl")
    write_rows(long[3:], tmp_path / "retain.jsonl")
    values = too_large | {"method": "low-rank-npo", "batch_size": 6, "dtype": "bfloat16", "target_modules": "v_proj"}
    settings, inputs = reading.read(UnlearnSettings.of(values), get_method("low-rank-npo"))
    replan = partial(planning.plan_run, inputs=inputs, machine=Machine("cpu", None))
    plan = replan(settings)
    small = replan(changed(settings, {"max_batch_tokens": 2 * len(plan.demand.longest.input_ids)}))
    assert small.needed(PLACES) < 0.9 * plan.needed(PLACES)
    fake = Machine("cpu", (small.needed(PLACES) + plan.needed(PLACES)) // 2)

    found = advise(settings, plan, fake, replan=replan)

    assert [set(advice.changes) for advice in found] == [{"max_batch_tokens"}, {"gradient_checkpointing"}]
    number = found[0].changes["max_batch_tokens"]
    assert is_tight(replan(changed(settings, {"max_batch_tokens": 2 * int(str(number))})), fake)


@pytest.mark.slow
def test_no_advice_where_nothing_helps(monkeypatch: pytest.MonkeyPatch, too_large: dict[str, Any]) -> None:
    with_memory(monkeypatch, 0.1)
    with pytest.raises(SettingsError, match="use a larger machine or a smaller model"):
        run(too_large | {"method": "low-rank-npo", "dtype": "bfloat16"})


def test_swap_lets_a_run_begin_with_a_note(monkeypatch: pytest.MonkeyPatch, too_large: dict[str, Any]) -> None:
    fake = Machine(device="cpu", memory=4 * GIB, swap=100 * GIB)
    monkeypatch.setattr(check, "machine_of", lambda _: fake)
    settings, inputs = reading.read(UnlearnSettings.of(too_large), get_method("neko"))
    notes: list[str] = []

    check.check_fit(settings, inputs, note=notes.append)

    assert len(notes) == 1
    assert notes[0].startswith("this run may not fit")


def test_few_tokens_at_once_beside_much_memory_need_no_plan(too_large: dict[str, Any]) -> None:
    settings = UnlearnSettings.of(too_large)
    stored = sum(path.stat().st_size for path in Path(settings.model).glob("*.safetensors"))
    # 4,096 of the usual 16,384 tokens: a quarter of the memory that 1,000 times the weights would be.
    enough, short = Machine("cpu", 250 * stored + 1), Machine("cpu", 250 * stored)
    assert check.is_small(settings, enough, num_tokens=4096)
    assert not check.is_small(settings, short, num_tokens=4096)
    assert not check.is_small(settings, enough)
    assert not check.is_small(changed(settings, {"rank": 4096}), enough, num_tokens=4096)
    assert check.is_small(settings, Machine("cpu", 1000 * stored + 1), num_tokens=10**6)


def test_unknown_memory_refuses_nothing(monkeypatch: pytest.MonkeyPatch, too_large: dict[str, Any]) -> None:
    monkeypatch.setattr(check, "machine_of", lambda _: Machine(device="cpu", memory=None))
    settings, inputs = reading.read(UnlearnSettings.of(too_large), get_method("neko"))
    check.check_fit(settings, inputs, note=pytest.fail)


def test_on_a_gpu_the_memories_are_counted_apart(tokenizer: PreTrainedTokenizerBase) -> None:
    model, settings = tiny_model("olmo", tokenizer), settings_of()
    data = Data(trained=SEQUENCES, num_forget=2, num_retain=2, scored=SEQUENCES)
    demand = demand_of(settings, data, schedule=MixedSchedule(4, 4, 0), method=get_method("low-rank-npo"))
    plan = estimate(model.config, settings, demand, terms=terms_for(settings), device="cuda")
    weights = bytes_of(plan, "weights in float32")

    assert [name for name, _ in plan.pools] == ["GPU memory", "memory"]
    store = bytes_of(plan, "values of the reference")
    # A_f = 30, A_r = 30: a float32 each, and for retain tokens D = 32 floats and a float64.
    assert store == 60 * (4 + 1) + 30 * (4 * 32 + 8)
    assert plan.least(plan.pools[1][1]) == weights + store


def test_command_line_prints_and_refuses(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rows: list[Row], model: Any, tokenizer: Any
) -> None:
    given = short_run(tmp_path, rows, model, tokenizer) | {"method": "neko"}
    names = ("model", "forget", "retain", "method", "template")
    flags = [word for name in names for word in (f"--{name}", str(given[name]))]
    with_memory(monkeypatch, 100.0)
    done = CliRunner().invoke(cli, ["unlearn", "--plan", *flags])
    assert done.exit_code == 0, done.output
    for shown in ("weights in float32", "moments of the optimiser", "values of the reference", "steps", "at least"):
        assert shown in done.output

    with_memory(monkeypatch, 1e-4)
    monkeypatch.setattr(check, "advise", lambda *_, **__: [])
    refused = CliRunner().invoke(cli, ["unlearn", "--plan", *flags])
    assert isinstance(refused.exception, SettingsError)
    assert "this run cannot fit" in str(refused.exception)
    assert "moments of the optimiser" in refused.output


def test_demand_of_a_schedule_worked_by_hand() -> None:
    settings = settings_of(epochs=2, batch_size=4, checkpoint_epochs=1, method="gd", max_batch_tokens=100)
    data = Data(trained=SEQUENCES, num_forget=2, num_retain=2, scored=SEQUENCES[2:])
    demand: Demand = demand_of(settings, data, schedule=MixedSchedule(4, 4, 0, 2), method=get_method("gd"))

    # Each of two steps takes all four rows: 140 tokens, 30 answer tokens to forget and 30 to keep.
    # Squared, 1600 + 900 + 2500 + 400 a step.
    assert dataclasses.astuple(demand.trained) == (280, 60, 60, 0, 0, 10_800)
    assert demand.num_steps == 2
    assert demand.is_split
    assert demand.largest.num_tokens <= 100
    assert dataclasses.astuple(demand.scoring) == (70, 0, 30, 0, 0, 2900)
    # As many rows of each role as the steps read: half and half.
    assert (demand.sample.num_forget, demand.sample.num_retain, len(demand.sample.sequences)) == (8, 8, 16)
    assert dataclasses.astuple(demand.sampled) == (560, 120, 120, 0, 0, 21_600)
    assert demand.num_scorings == 2
    assert len(demand.longest.input_ids) == 50
    assert demand.probe_tokens == 50 + 3 * 35


def test_free_memory_heeds_the_kernel_and_control_groups(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal: 4000 kB\nMemAvailable: 2000 kB\nHugePages_Total: 0\nSwapFree: 10 kB\n")
    monkeypatch.setattr(machine, "PROC", proc)
    monkeypatch.setattr(machine, "CGROUPS", groups)
    assert machine.free_memory() == 2000 * 1024

    (proc / "self/cgroup").write_text("0::/job/task\n")
    (groups / "job/task").mkdir(parents=True)
    for folder, limit in ((groups / "job", "1000000"), (groups / "job/task", "max")):
        (folder / "memory.max").write_text(limit)
        (folder / "memory.current").write_text("700000")
        (folder / "memory.stat").write_text("active_file 100000\ninactive_file 50000\nanon 1\n")
    # The group above allows 1,000,000 bytes, of which 700,000 are used, 150,000 of them page cache.
    assert machine.free_memory() == 450_000
    assert machine.this_machine("cpu").swap == 10 * 1024


def test_rate_is_measured() -> None:
    rates = machine.measure_rates("float32", "cpu", width=64)
    assert rates.trunk == rates.head > 1e6
