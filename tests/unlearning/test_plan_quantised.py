"""What a plan says of quantised weights and of several processes."""

from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase

from letheon.data.rows import Row
from letheon.data.schedules import MixedSchedule
from letheon.data.sequences import TokenSequence
from letheon.model.codes import matrix_shape, stored_bytes
from letheon.model.loading import load_config, load_model, save_model
from letheon.model.quantised_layers import plain_shapes, quantised_layers, saved_bytes
from letheon.objective.catalogue import get_method
from letheon.settings import UnlearnSettings
from letheon.unlearning import planning, reading
from letheon.unlearning.planning import machine
from letheon.unlearning.planning.advice import advise
from letheon.unlearning.planning.demand import Data, demand_of
from letheon.unlearning.planning.estimate import Place, Plan, estimate
from letheon.unlearning.planning.machine import Machine
from letheon.unlearning.planning.table import render
from letheon.unlearning.planning.trace import empty_model
from letheon.unlearning.resolve import resolve_settings, terms_of
from running import short_run
from small import tiny_model

SEQUENCES = [TokenSequence(tuple(range(2, 2 + size)), size // 2) for size in (40, 30, 50, 20)]
"""Two forget and two retain rows."""


def saved(folder: Path, architecture: str, tokenizer: PreTrainedTokenizerBase) -> str:
    model = tiny_model(architecture, tokenizer)
    model.to(torch.bfloat16)  # type: ignore[arg-type]  # transformers annotates it so
    save_model(model, tokenizer, folder)
    return str(folder)


def settings_of(**given: Any) -> UnlearnSettings:
    return resolve_settings(UnlearnSettings.of({"model": "m", "forget": "f", "retain": "r", "out": "o", **given}))


def plan_of(source: str, *, device: str = "cuda", num_processes: int = 1, **given: Any) -> Plan:
    settings = settings_of(dtype="bfloat16", batch_size=4, **given)
    data, method = Data(SEQUENCES, num_forget=2, num_retain=2, scored=SEQUENCES), get_method(settings.method)
    schedule = MixedSchedule(4, 4, 0, settings.epochs)
    demand = demand_of(settings, data, schedule=schedule, method=method, num_processes=num_processes)
    terms = terms_of(method, settings)
    return estimate(load_config(source), settings, demand, terms=terms, device=device, num_processes=num_processes)


def bytes_of(plan: Plan, name: str, place: str = "device") -> int:
    return sum(part.bytes for part in plan.allocations if (part.name, part.place) == (name, place))


def layout_of(model: PreTrainedModel) -> dict[str, Any]:
    return {name: (stored_bytes(p), p.dtype, matrix_shape(p)) for name, p in model.named_parameters()}


@pytest.mark.parametrize("architecture", ["olmo", "gpt2"])
@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "widened"])
def test_a_model_without_values_lies_in_memory_as_the_loaded_one(
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerBase,
    architecture: str,
    kind: Literal["nf4", "int8"],
    precision: Literal["float32", "bfloat16", "widened"],
) -> None:
    pytest.importorskip("bitsandbytes")
    source = saved(tmp_path / "m", architecture, tokenizer)
    hollow = empty_model(load_config(source), precision, quantise=kind)
    loaded = load_model(source, dtype=precision, quantise=kind, device="cpu").model
    assert layout_of(hollow) == layout_of(loaded)
    assert len(quantised_layers(hollow)) == (14 if architecture == "olmo" else 8)
    assert plain_shapes(hollow) == plain_shapes(loaded)
    assert saved_bytes(hollow) == saved_bytes(loaded)


@pytest.mark.parametrize("double", [False, True])
def test_a_quantised_checkpoint_is_planned_as_it_is_stored(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, double: bool
) -> None:
    pytest.importorskip("bitsandbytes")
    how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="fp4", bnb_4bit_use_double_quant=double)
    made = AutoModelForCausalLM.from_pretrained(
        saved(tmp_path / "m", "olmo", tokenizer), dtype=torch.bfloat16, quantization_config=how, device_map={"": "cpu"}
    )
    made.save_pretrained(tmp_path / "q")
    tokenizer.save_pretrained(tmp_path / "q")
    source = str(tmp_path / "q")
    loaded = load_model(source, dtype="bfloat16", device="cpu").model
    assert layout_of(empty_model(load_config(source), "bfloat16")) == layout_of(loaded)


def test_bytes_of_quantised_weights_by_hand(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    pytest.importorskip("bitsandbytes")
    source = saved(tmp_path / "m", "olmo", tokenizer)
    # Two layers of four matrices 32 x 32 and three 32 x 64; OLMo has no norm weights, and its head is the embedding.
    num_quantised, num_matrices = 2 * (4 * 32 * 32 + 3 * 32 * 64), 14
    others = 2 * load_config(source).vocab_size * 32
    rotation = 4 * 4  # eight numbers a head, of each pair one frequency
    plans = {kind: plan_of(source, quantise=kind) for kind in (None, "nf4", "int8")}
    sizes = {
        kind: sum(part.bytes for part in plan.allocations if part.name.startswith("weights in"))
        for kind, plan in plans.items()
    }
    rest = sizes[None] - 2 * num_quantised - others  # buffers: frequencies of the rotation
    assert rest in (rotation, 2 * rotation)
    assert sizes["nf4"] == num_quantised // 2 + num_quantised // 64 * 4 + num_matrices * 16 * 4 + others + rest
    rows = 2 * (4 * 32 + 2 * 64 + 32)
    assert sizes["int8"] == num_quantised + rows * 4 + others + rest
    # What is saved is the ordinary model, merged in main memory.
    assert bytes_of(plans["nf4"], "model", "disk") == bytes_of(plans[None], "model", "disk")
    assert bytes_of(plans["nf4"], "weights on their way to disk", "host") == sizes[None]
    assert bytes_of(plans["nf4"], "merged weights") == 0
    assert bytes_of(plan_of(source, device="cpu", quantise="nf4"), "merged weights") == sizes[None]
    assert plans["nf4"].num_parameters == plans[None].num_parameters


@pytest.mark.slow
def test_autograd_keeps_no_dequantised_matrix(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    pytest.importorskip("bitsandbytes")
    source = saved(tmp_path / "m", "olmo", tokenizer)
    ordinary, quantised = plan_of(source), plan_of(source, quantise="nf4")
    assert bytes_of(quantised, "activations") == bytes_of(ordinary, "activations") > 0


@pytest.mark.slow
def test_four_bits_are_advised_where_nothing_else_fits(
    tmp_path: Path, rows: list[Row], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    pytest.importorskip("bitsandbytes")
    given = short_run(tmp_path, rows, model, tokenizer) | {"dtype": "bfloat16", "gradient_checkpointing": True}
    settings, inputs = reading.read(UnlearnSettings.of(given), get_method("low-rank-npo"))
    settings = settings.model_copy(update={"max_batch_tokens": 16})
    replan = partial(planning.plan_run, inputs=inputs, machine=Machine("cuda", None, gpu_memory=1))
    plan = replan(settings)
    smaller = replan(settings.model_copy(update={"quantise": "nf4"}))
    places: tuple[Place, ...] = ("device",)
    enough = (plan.needed(places) + smaller.needed(places)) // 2
    found = advise(settings, plan, Machine("cuda", None, gpu_memory=enough), replan=replan)
    assert [dict(one.changes) for one in found] == [{"quantise": "nf4"}]


def test_processes_share_the_rows_of_a_step_and_not_the_weights(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    source = saved(tmp_path / "m", "olmo", tokenizer)
    one, two = plan_of(source), plan_of(source, num_processes=2)
    assert one.demand.largest.num_tokens == 140
    assert 70 <= two.demand.largest.num_tokens < 140
    assert two.demand.trained == one.demand.trained
    assert bytes_of(two, "activations") < bytes_of(one, "activations")
    for name in ("weights in bfloat16", "adapter", "moments of the optimiser"):
        assert bytes_of(two, name) == bytes_of(one, name) > 0


def test_weights_in_shares_by_hand(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    source, at_rest = saved(tmp_path / "m", "llama", tokenizer), "weights in bfloat16, a share and the largest layer"
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    layer = sum(value.nbytes for value in model.model.layers[0].parameters())
    embeddings, norm = model.get_input_embeddings().weight.nbytes, model.model.norm.weight.nbytes
    num_layers = len(model.model.layers)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    buffers = sum(value.nbytes for value in model.buffers())
    for num in (2, 4):
        held = (num_layers * layer + embeddings) // num + max(layer, embeddings) + norm + buffers
        assert bytes_of(plan_of(source, num_processes=num, shard=True), at_rest) == held


def test_a_method_that_takes_its_steps_whole_is_not_shared(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    settings, data = settings_of(), Data(SEQUENCES, num_forget=2, num_retain=2, scored=SEQUENCES)
    schedule, method = MixedSchedule(4, 4, 0, 1), get_method(settings.method)
    whole = demand_of(settings, data, schedule=schedule, method=method, can_split=False, num_processes=2)
    assert whole.largest.num_tokens == 140


def test_processes_of_one_machine_share_its_memory(
    tmp_path: Path,
    rows: list[Row],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine, "free_memory", lambda: 1000)
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert machine.this_machine("cpu").memory == 125
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert machine.this_machine("cpu").memory == 500
    settings, inputs = reading.read(
        UnlearnSettings.of(short_run(tmp_path, rows, model, tokenizer)), get_method("low-rank-npo")
    )
    plan = planning.plan_run(settings, inputs, machine=Machine("cpu", None))
    assert plan.num_processes == 8
    said = [str(part) for part in render(plan, Machine("cpu", None)).renderables]
    assert any("one of 8 processes" in line for line in said)
