"""What is trained: weights themselves and adapters in chosen layers, and the one reference that goes with them."""

import copy
import gc
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from letheon import Row
from letheon.data.packing import PackedBatch, pack
from letheon.data.sequences import TokenSequence, tokenise_all
from letheon.engine.engine import Engine
from letheon.engine.paths import build_engine
from letheon.engine.reference import build_reference
from letheon.engine.values import token_values
from letheon.errors import ModelError, SettingsError
from letheon.model.adapted import Adapted
from letheon.model.adapters import Init, LoraAdapter, LoraSettings, attach_lora, first_values
from letheon.model.architectures import new_model
from letheon.model.layers import layers_in, names_in_layers
from letheon.model.loading import save_model
from letheon.model.weights import train_weights
from letheon.objective.values import Needs
from running import events, model_of, run, same, short_run
from small import tiny_model

NUM_FORGET = 3


@pytest.fixture
def sequences(rows: list[Row], tokenizer: PreTrainedTokenizerBase) -> list[TokenSequence]:
    return tokenise_all(rows, tokenizer, template="joined", max_length=200)


def batch_of(sequences: list[TokenSequence], indices: list[int]) -> PackedBatch:
    return pack([sequences[i] for i in indices], is_forget=[i < NUM_FORGET for i in indices], row_index=indices)


def engine_of(adapted: Adapted, sequences: list[TokenSequence]) -> Engine:
    engine = build_engine(adapted.model, batch_of(sequences, list(range(6))), adapter_off=adapted.off)
    assert engine.path == "packed", engine.notes
    return engine


def move(adapted: Adapted, *, scale: float = 0.05) -> None:
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in adapted.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)


# What is trained


@pytest.mark.parametrize(
    ("modules", "layers", "expected"),
    [
        ((), None, ""),
        ((), "-1:", "model.layers.1."),
        ((), "0:1", "model.layers.0."),
        (("mlp",), None, ".mlp."),
        (("q_proj", "v_proj"), "1:", "model.layers.1.self_attn.(q|v)_proj."),
        (("lm_head",), None, "embed_tokens"),  # tied: one tensor, under the name of the embedding
    ],
)
def test_a_run_changes_what_it_trains_and_nothing_else(
    modules: tuple[str, ...],
    layers: str | None,
    expected: str,
    tmp_path: Path,
    rows: list[Row],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    given = short_run(tmp_path, rows, model, tokenizer)
    report = run(
        given, method="gd", adapt="weights", epochs=1, target_modules=modules, learning_rate=1e-3, layers=layers
    )
    before, after = load_file(tmp_path / "target" / "model.safetensors"), model_of(report)
    assert before.keys() == after.keys()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed == {name for name in after if re.search(expected, name)}
    assert not (report.folder / "adapter").exists()
    assert AutoModelForCausalLM.from_pretrained(report.model) is not None


def test_tied_weights_stay_tied(tmp_path: Path, rows: list[Row], tokenizer: PreTrainedTokenizerBase) -> None:
    model = tiny_model("gpt2", tokenizer)
    given = short_run(tmp_path, rows, model, tokenizer)
    report = run(given, method="neko", epochs=1, learning_rate=1e-3)
    trained = AutoModelForCausalLM.from_pretrained(report.model)
    state, before = trained.state_dict(), model.state_dict()
    assert state["lm_head.weight"].data_ptr() == state["transformer.wte.weight"].data_ptr()
    assert not torch.equal(state["lm_head.weight"], before["lm_head.weight"])


def test_names_that_fit_nothing_are_refused(model: PreTrainedModel) -> None:
    with pytest.raises(ModelError, match=r"no module 'mpl'.*did you mean 'mlp'"):
        train_weights(model, modules=("mpl",), layers=None)
    with pytest.raises(SettingsError, match="selects none of the model's 2 layers"):
        train_weights(model, modules=(), layers="5:")
    with pytest.raises(ModelError, match="none of lm_head is inside the layers '0:1'"):
        train_weights(model, modules=("lm_head",), layers="0:1")


@pytest.mark.parametrize(
    ("span", "expected"), [("-8:", [0, 1, 2, 3]), ("0:6", [0, 1, 2, 3]), ("-1:", [3]), (":2", [0, 1]), ("1:-1", [1, 2])]
)
def test_spans_are_slices(span: str, expected: list[int]) -> None:
    assert list(layers_in(span, 4)) == expected


@pytest.mark.parametrize(
    ("architecture", "prefix"),
    [("olmo", "model.layers.1."), ("gpt2", "transformer.h.1."), ("gpt-neox", "gpt_neox.layers.1.")],
)
def test_layers_are_found_by_any_name(architecture: str, prefix: str, tokenizer: PreTrainedTokenizerBase) -> None:
    assert names_in_layers(tiny_model(architecture, tokenizer), "-1:") == (prefix,)


def test_what_was_trained_can_be_put_back(model: PreTrainedModel) -> None:
    trained = train_weights(model, modules=("mlp",), layers=None)
    before = {name: value.clone() for name, value in trained.trained().items()}
    move(trained)
    after = trained.trained()
    assert not any(torch.equal(before[name], after[name]) for name in before)
    trained.load_state(before)
    assert same(trained.trained(), before)
    assert before.keys() == trained.exact.keys()
    assert all(p.requires_grad == (n in trained.exact) for n, p in model.named_parameters())


# The reference


def naive(
    policy: PreTrainedModel, reference: PreTrainedModel, sequences: list[TokenSequence], indices: list[int], kl: str
) -> tuple[Tensor, Tensor]:
    """Mean NLL and mean KL over the answers of `indices`, from the plain logits of two float64 models."""
    log_probs, divergences = [], []
    for sequence in (sequences[i] for i in indices):
        ids, first = torch.tensor(sequence.input_ids), sequence.answer_start
        p = policy(ids[None]).logits[0, first - 1 : -1].log_softmax(-1)
        with torch.no_grad():
            q = reference(ids[None]).logits[0, first - 1 : -1].log_softmax(-1)
        log_probs.append(p[range(len(p)), ids[first:]])
        divergences.append(((q.exp() * (q - p)) if kl == "forward" else (p.exp() * (p - q))).sum(-1))
    return -torch.cat(log_probs).mean(), torch.cat(divergences).mean()


@pytest.mark.parametrize("kl", ["forward", "reverse"])
@pytest.mark.parametrize(
    ("architecture", "modules"),
    [
        ("gpt-neox", ()),  # a head of its own
        ("gpt-neox", ("lm_head",)),  # nothing but the head
        ("olmo", ()),  # tied: the head's gradient and the embedding's are one
        ("olmo", ("lm_head",)),
        ("gemma2", ()),  # tied, soft-capped
        ("gpt2", ("mlp",)),  # the head is frozen: the forward KL by the expected embedding
    ],
)
def test_terms_and_gradients_equal_two_models_in_float64(
    architecture: str,
    modules: tuple[str, ...],
    kl: Any,
    tokenizer: PreTrainedTokenizerBase,
    sequences: list[TokenSequence],
) -> None:
    model = tiny_model(architecture, tokenizer)
    reference = copy.deepcopy(model).double()
    trained = train_weights(model, modules=modules, layers=None)
    engine = engine_of(trained, sequences)
    assert engine.trains_head == (modules != ("mlp",))
    needs = Needs(kl=kl)
    with engine.running():
        store = build_reference(engine, sequences, num_forget_rows=NUM_FORGET, needs=needs)
    move(trained)
    chosen = [4, 3, 5]
    with engine.running():
        values = token_values(engine, store, batch_of(sequences, chosen), needs=needs)
        assert values.kl is not None
        (0.7 * values.kl.mean() - 0.4 * values.log_probs.mean()).backward()
    policy = copy.deepcopy(model).double()
    for parameter in policy.parameters():
        parameter.grad = None
    nll, divergence = naive(policy, reference, sequences, chosen, kl)
    (0.7 * divergence + 0.4 * nll).backward()
    assert divergence.item() > 1e-3
    assert values.kl.mean().item() == pytest.approx(divergence.item(), abs=2e-5)
    assert -values.log_probs.mean().item() == pytest.approx(nll.item(), abs=2e-5)
    expected = dict(policy.named_parameters())
    for name, parameter in trained.exact.items():
        exact = expected[name].grad
        assert exact is not None
        assert parameter.grad is not None, name
        assert torch.allclose(parameter.grad.double(), exact, rtol=1e-3, atol=1e-5 * float(exact.abs().max() + 1)), name


def test_the_stored_logits_of_the_reference_do_not_follow_the_head(
    model: PreTrainedModel, sequences: list[TokenSequence]
) -> None:
    trained = train_weights(model, modules=(), layers=None)
    engine = engine_of(trained, sequences)
    needs = Needs(reference_logits=True, forget_logits=True)
    with engine.running(), torch.no_grad():
        store = build_reference(engine, sequences, num_forget_rows=NUM_FORGET, needs=needs)
        batch = batch_of(sequences, [0, 2, 4])
        before = token_values(engine, store, batch, needs=needs)
        move(trained)
        after = token_values(engine, store, batch, needs=needs)
    assert before.logits is not None
    assert before.reference_logits is not None
    assert after.logits is not None
    assert after.reference_logits is not None
    assert torch.allclose(before.reference_logits, before.logits, atol=1e-5)
    assert torch.equal(after.reference_logits, before.reference_logits)
    assert (after.logits - before.logits).abs().max() > 0.1


def tensors_alive() -> Iterator[Tensor]:
    gc.collect()
    for found in gc.get_objects():
        if type(found) in (Tensor, nn.Parameter) and not found.is_meta:
            yield found


def bytes_alive() -> int:
    """Bytes of all storages that a tensor still holds, each counted once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors_alive()}
    return sum(storages.values())


@pytest.mark.filterwarnings("ignore::FutureWarning")  # looking at every object touches deprecated ones
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_no_second_model_is_held(tokenizer: PreTrainedTokenizerBase, sequences: list[TokenSequence]) -> None:
    from letheon.model.architectures import new_model

    model = new_model(
        "olmo", tokenizer=tokenizer, width=128, num_layers=4, num_heads=4, intermediate=512, context=256, seed=0
    )
    model.eval()
    trained = train_weights(model, modules=(), layers=None)
    held_before = bytes_alive()
    engine = engine_of(trained, sequences)
    needs = Needs(kl="forward")
    with engine.running():
        store = build_reference(engine, sequences, num_forget_rows=NUM_FORGET, needs=needs)
        token_values(engine, store, batch_of(sequences, [3, 4]), needs=needs)
    held = bytes_alive() - held_before
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    head = model.get_output_embeddings().weight
    allowed = store.num_bytes + head.numel() * head.element_size()
    assert size > 5 * allowed
    # Rounded up by the batch's own few integers.
    assert held <= allowed + 20_000
    assert engine.model is model


# Adapters


@pytest.mark.parametrize(
    "settings",
    [
        LoraSettings(rank=3, alpha=4),
        LoraSettings(rank=3, alpha=4, layers="-1:"),
        LoraSettings(rank=3, alpha=4, rank_stabilised=True),
        LoraSettings(rank=3, alpha=4, decomposed=True),
        LoraSettings(rank=3, alpha=4, targets=("all-linear",), layers=":1", rank_stabilised=True),
    ],
)
@pytest.mark.parametrize("architecture", ["olmo", "gpt2"])
def test_adapters_attach_switch_off_merge_and_load_in_peft(
    settings: LoraSettings, architecture: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    model = tiny_model(architecture, tokenizer)
    save_model(model, tokenizer, tmp_path / "base")
    ids = torch.arange(5, 30)[None]

    def logits(of: Any) -> Tensor:
        with torch.no_grad():
            found: Tensor = of(ids).logits
        return found

    plain = logits(model)
    adapter = attach_lora(model, settings, seed=0)
    assert torch.allclose(logits(adapter.model), plain, atol=1e-5)
    move(adapter, scale=0.2)
    on = logits(adapter.model)
    assert (on - plain).abs().max() > 0.01
    with adapter.off():
        assert torch.allclose(logits(adapter.model), plain, atol=1e-6)
    save_model(adapter.model, tokenizer, tmp_path / "merged", state=adapter.merged_state())
    assert torch.allclose(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged")), on, atol=1e-4)
    adapter.save(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "adapter")
    assert torch.allclose(logits(loaded.eval()), on, atol=1e-5)
    inside = names_in_layers(model, settings.layers) if settings.layers else ("",)
    adapted = {name.removeprefix("base_model.model.") for name in adapter.trained()}
    assert adapted
    assert all(name.startswith(inside) for name in adapted)


@pytest.mark.parametrize(("stabilised", "factor"), [(False, 4 / 9), (True, 4 / 3)])
def test_the_factor_of_the_adapter_by_hand(stabilised: bool, factor: float, model: PreTrainedModel) -> None:
    adapter = attach_lora(model, LoraSettings(rank=9, alpha=4, rank_stabilised=stabilised), seed=0)
    move(adapter)
    state = {name.removeprefix("base_model.model."): value for name, value in adapter.trained().items()}
    layer = "model.layers.0.self_attn.q_proj"
    down, up = state[f"{layer}.lora_A.default.weight"], state[f"{layer}.lora_B.default.weight"]
    before = dict(model.named_parameters())[f"{layer}.base_layer.weight"]
    assert torch.allclose(adapter.merged_state()[f"{layer}.weight"], before + factor * up @ down, atol=1e-6)


@pytest.mark.parametrize(
    ("init", "deviation"), [("xavier", (2 / (64 + 48)) ** 0.5), ("kaiming", (1 / (3 * 64)) ** 0.5)]
)
def test_how_an_adapter_begins(init: Init, deviation: float, tokenizer: PreTrainedTokenizerBase) -> None:
    made = new_model(
        "olmo", tokenizer=tokenizer, width=64, num_layers=2, num_heads=4, intermediate=64, context=32, seed=0
    )
    state = attach_lora(made, LoraSettings(rank=48, init=init), seed=0).trained()
    downs = torch.cat([value.flatten() for name, value in state.items() if "lora_A" in name])
    assert len(downs) == 4 * 48 * 64
    assert float(downs.std()) == pytest.approx(deviation, rel=0.02)  # four deviations of that of 12,288 draws
    largest = (3 * deviation**2) ** 0.5  # of a uniform distribution of that deviation
    assert (float(downs.abs().max()) <= largest) == (init == "kaiming")
    assert not any(value.any() for name, value in state.items() if "lora_B" in name)


def test_kaiming_is_how_peft_itself_begins() -> None:
    layer = torch.nn.Sequential(torch.nn.Linear(2048, 8))
    torch.manual_seed(0)
    peft = get_peft_model(layer, LoraConfig(r=16, target_modules=["0"]))
    (theirs,) = (value.detach() for name, value in peft.named_parameters() if "lora_A" in name)
    ours = first_values(peft, rank=16, seed=0, init="kaiming")
    (mine,) = (value for name, value in ours.items() if "lora_A" in name)
    assert float(theirs.abs().max()) == pytest.approx(float(mine.abs().max()), rel=1e-3)
    assert float(theirs.std()) == pytest.approx(float(mine.std()), rel=0.02)
    xavier = first_values(peft, rank=16, seed=0)
    assert float(xavier["base_model.model.0.lora_A.default.weight"].std() / mine.std()) == pytest.approx(2.4, abs=0.1)


def test_an_adapter_does_not_depend_on_what_was_drawn_before(tokenizer: PreTrainedTokenizerBase) -> None:
    states = []
    for noise in (0, 1):
        torch.manual_seed(noise)
        states.append(attach_lora(tiny_model("olmo", tokenizer), LoraSettings(), seed=3).trained())
    assert same(*states)


def trained_states(
    model: PreTrainedModel, settings: LoraSettings, num: int
) -> tuple[LoraAdapter, list[dict[str, Tensor]]]:
    adapter = attach_lora(model, settings, seed=0)
    states = []
    for number in range(num):
        generator = torch.Generator().manual_seed(number)
        states.append({n: torch.randn(v.shape, generator=generator) for n, v in sorted(adapter.trained().items())})
    return adapter, states


def change(adapter: LoraAdapter) -> dict[str, Tensor]:
    """What the adapter adds to each weight."""
    merged = adapter.merged_state()
    with torch.no_grad():
        base = {n.replace(".base_layer", ""): p for n, p in adapter.model.named_parameters() if ".lora_" not in n}
    return {name: merged[name] - base[name] for name in merged if "_proj" in name}


@pytest.mark.filterwarnings("ignore:The density 1.0")  # PEFT says that nothing is pruned, which is wanted here
@pytest.mark.parametrize("stabilised", [False, True])
def test_ties_of_one_state_kept_whole_is_that_state(stabilised: bool, model: PreTrainedModel) -> None:
    settings = LoraSettings(rank=9, alpha=4, rank_stabilised=stabilised)
    adapter, (state,) = trained_states(model, settings, 1)
    adapter.load_state(state)
    expected = change(adapter)
    config_before = dict(adapter.peft.peft_config)
    adapter.merge_ties([state, state], density=1.0)
    found = change(adapter)
    for name, value in expected.items():
        assert torch.allclose(found[name], value, rtol=1e-4, atol=1e-5), name
    # What PEFT made on the way is gone, and the adapter can be trained and saved as before.
    assert dict(adapter.peft.peft_config) == config_before
    assert adapter.trained().keys() == state.keys()


def test_ties_by_hand(model: PreTrainedModel) -> None:
    adapter, states = trained_states(model, LoraSettings(rank=1, alpha=1), 2)
    name = next(n for n in states[0] if "lora_A" in n)
    up = name.replace("lora_A", "lora_B")
    for state, down_values in zip(states, ([4.0, 3.0, 2.0, 1.0], [-1.0, 5.0, -3.0, 2.0]), strict=True):
        for key, value in state.items():
            value.fill_(0 if key != up else 1)
        state[name][0, :4] = torch.tensor(down_values)
    # Of the 32 entries 3 are kept in each: (4, 3, 2, 0) and (0, 5, -3, 2). Signs by the sum: (+, +, -, +).
    # Means of those that agree: 4, (3 + 5) / 2, -3, 2.
    adapter.merge_ties(states, density=3 / 32)
    merged = adapter.trained()[name][0]
    assert merged[:4].tolist() == pytest.approx([4.0, 4.0, -3.0, 2.0])
    assert merged[4:].abs().max() == 0


def test_scaling_by_minus_one_subtracts_what_was_learned(model: PreTrainedModel) -> None:
    adapter, (state,) = trained_states(model, LoraSettings(rank=3), 1)
    adapter.load_state(state)
    before = change(adapter)
    adapter.scale(-2.0)
    after = change(adapter)
    assert all(torch.allclose(after[name], -2 * value, atol=1e-4) for name, value in before.items())


@pytest.mark.slow
def test_full_fine_tuning_in_bfloat16_moves_as_far_as_in_float32(
    tmp_path: Path, rows: list[Row], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    # A step of 3e-5 is less than half the spacing of bfloat16 at most weights: it must add up all the same.
    given = short_run(tmp_path, rows, model, tokenizer)
    found = []
    for dtype in ("float32", "bfloat16"):
        steps = {"epochs": 40, "batch_size": 6, "checkpoint_epochs": 40, "learning_rate": 3e-5}
        report = run(given, method="neko", dtype=dtype, out=tmp_path / dtype, **steps)
        values = [line["terms"]["ga_by_row"] for line in events(report.folder, "step")]
        found.append(values[0] - values[-1])
    exact, rounded = found
    assert exact > 0.02
    assert rounded == pytest.approx(exact, rel=0.3)


@pytest.mark.parametrize("settings", [LoraSettings(), LoraSettings(decomposed=True)])
def test_adapters_of_bfloat16_models_are_float32(settings: LoraSettings, tokenizer: PreTrainedTokenizerBase) -> None:
    model = tiny_model("olmo", tokenizer)
    adapter = attach_lora(torch.nn.Module.to(model, torch.bfloat16), settings, seed=0)
    assert {parameter.dtype for parameter in adapter.parameters()} == {torch.float32}


def test_exact_weights_of_a_bfloat16_model(model: PreTrainedModel) -> None:
    rounded = torch.nn.Module.to(model, torch.bfloat16)
    trained = train_weights(rounded, modules=("mlp",), layers="1:")
    assert {p.dtype for p in trained.parameters()} == {torch.float32}
    ids = torch.arange(5, 25)[None]
    for _ in range(2):  # a step in two pieces
        rounded(input_ids=ids, labels=ids).loss.backward()
    named = dict(rounded.named_parameters())
    for name, exact in trained.exact.items():
        assert exact.grad is not None
        assert exact.grad.dtype == torch.float32
        assert named[name].grad is None
    before = {name: value.clone() for name, value in trained.trained().items()}
    move(trained, scale=1e-5)
    trained.update_model()
    for name, exact in trained.exact.items():
        assert torch.equal(named[name], exact.detach().bfloat16())
        assert not torch.equal(exact, before[name])
    trained.load_state(before)
    assert all(torch.equal(named[name], value.bfloat16()) for name, value in before.items())
    assert {value.dtype for value in trained.merged_state().values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "neko"}, "needs the reference's distributions"),
        ({"method": "undial", "adapt": "weights"}, "needs the reference's distributions"),
        ({"method": "rmu"}, "needs hidden states"),
        ({"method": "gd", "adapt": "weights"}, None),
        ({"method": "neko", "adapt": "lora"}, None),
    ],
)
def test_what_cannot_be_had_of_an_unknown_architecture_is_refused(
    given: dict[str, Any],
    message: str | None,
    tmp_path: Path,
    rows: list[Row],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("letheon.engine.paths._objection", lambda *_: "is refused")
    shared = short_run(tmp_path, rows, model, tokenizer)
    if message is None:
        report = run(shared, **given, epochs=1)
        assert report.provenance["engine"]["path"] == "logits"
        return
    with pytest.raises(ModelError, match=message):
        run(shared, **given, epochs=1)
