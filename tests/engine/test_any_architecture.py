"""Every causal language model: one table of architectures, and what must hold of each on the path that it takes."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from architecture_table import ALTERNATING, ARCHITECTURES, CASES, LLAMA3_ROPE, WINDOW, random_model
from letheon import Row
from letheon.data.packing import PackedBatch, pack
from letheon.data.sequences import TokenSequence, tokenise_all
from letheon.engine.attention import NAMES
from letheon.engine.engine import Engine, packed_attention, packed_states
from letheon.engine.engine import Path as Route
from letheon.engine.head import head_of, project
from letheon.engine.patches.rotation import check_lengths
from letheon.engine.paths import TOLERANCE, build_engine, leak_between_sequences
from letheon.engine.reference import build_reference
from letheon.engine.values import token_values
from letheon.errors import ModelError
from letheon.evaluation.generation import generate_answers
from letheon.model.adapters import LoraAdapter, LoraSettings, attach_lora
from letheon.model.layers import decoder_layers, trunk_of
from letheon.model.loading import context_length, load_model, save_model
from letheon.model.targets import ALL_LINEAR, SEED_TARGETS, find_targets
from letheon.model.weights import train_weights
from letheon.objective.values import Needs

NUM_FORGET = 3
every = pytest.mark.parametrize("name", ARCHITECTURES)


def made(name: str, tokenizer: PreTrainedTokenizerBase, **changes: Any) -> PreTrainedModel:
    """The small model of the table."""
    return random_model(CASES[name].config(len(tokenizer), **changes))


def in_dtype(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    nn.Module.to(model, dtype)
    return model


def moved(model: PreTrainedModel, *, targets: tuple[str, ...] = SEED_TARGETS, scale: float = 0.2) -> LoraAdapter:
    """The model with an adapter that changes it."""
    adapted = attach_lora(model, LoraSettings(rank=3, alpha=3, targets=targets), seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in adapted.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return adapted


@pytest.fixture
def sequences(rows: list[Row], tokenizer: PreTrainedTokenizerBase) -> list[TokenSequence]:
    """Sequences of 16, 22, 4, 13, 8 and 41 tokens."""
    return tokenise_all(rows, tokenizer, template="joined", max_length=200)


def batch_of(sequences: list[TokenSequence], indices: Sequence[int] | None = None) -> PackedBatch:
    chosen = range(len(sequences)) if indices is None else indices
    return pack([sequences[i] for i in chosen], is_forget=[i < NUM_FORGET for i in chosen], row_index=chosen)


def engine_of(adapted: LoraAdapter, batch: PackedBatch) -> Engine:
    return build_engine(adapted.model, batch, adapter_off=adapted.off)


def differentiable_logits(model: PreTrainedModel, batch: PackedBatch) -> Tensor:
    """The model's own logits (A, V), float32, one sequence at a time, by its own attention."""
    found = []
    for number, (start, end) in enumerate(pairwise(batch.boundaries)):
        logits = model(input_ids=batch.input_ids[None, start:end], use_cache=False).logits[0].float()
        found.append(logits[batch.answer_positions[batch.owner == number] - start])
    return torch.cat(found)


@torch.no_grad()
def own_logits(model: PreTrainedModel, batch: PackedBatch) -> Tensor:
    """The same without gradients."""
    return differentiable_logits(model, batch)


def of_labels(logits: Tensor, batch: PackedBatch) -> Tensor:
    return logits.log_softmax(-1).gather(1, batch.labels[:, None])[:, 0]


@torch.no_grad()
def engine_log_probs(engine: Engine, batch: PackedBatch) -> Tensor:
    with engine.running():
        return engine.label_values(batch).log_probs


@every
def test_terms_equal_one_sequence_at_a_time(
    name: str, tokenizer: PreTrainedTokenizerBase, sequences: list[TokenSequence]
) -> None:
    case, batch = CASES[name], batch_of(sequences)
    adapted = moved(made(name, tokenizer))
    engine = engine_of(adapted, batch)
    assert engine.path == case.path, engine.notes
    assert bool(engine.notes) == (case.path != "packed")
    assert case.reason in " ".join(engine.notes)
    for order in (range(6), [5, 2, 0, 4, 1, 3], [4]):
        wanted = batch_of(sequences, order)
        expected = of_labels(own_logits(adapted.model, wanted), wanted)
        assert torch.allclose(engine_log_probs(engine, wanted), expected, atol=2e-5)


@every
def test_the_head_gives_the_models_own_logits(
    name: str, tokenizer: PreTrainedTokenizerBase, sequences: list[TokenSequence]
) -> None:
    batch = batch_of(sequences)
    adapted = moved(made(name, tokenizer))
    engine = engine_of(adapted, batch)
    expected = own_logits(adapted.model, batch)
    with torch.no_grad(), engine.running():
        likeliest, _ = engine.likeliest(batch)
        found = None if engine.path == "logits" else project(engine.states(batch), engine.head)
    assert torch.equal(likeliest, expected.argmax(-1))
    assert found is None or torch.allclose(found, expected, atol=2e-5)


@every
def test_bfloat16_is_no_further_from_float32_than_the_models_own(
    name: str, tokenizer: PreTrainedTokenizerBase, sequences: list[TokenSequence]
) -> None:
    batch = batch_of(sequences)
    rounded = in_dtype(made(name, tokenizer), torch.bfloat16)
    exact = made(name, tokenizer)
    exact.load_state_dict(rounded.state_dict())
    engine = engine_of(attach_lora(rounded, LoraSettings(), seed=0), batch)
    assert engine.path == CASES[name].path, engine.notes
    expected = of_labels(own_logits(exact, batch), batch)
    own = of_labels(own_logits(rounded, batch), batch)
    found = engine_log_probs(engine, batch)
    assert (found - own).abs().max() <= TOLERANCE[torch.bfloat16]
    # A quarter more for chance: about 60 labels, and errors that are each as likely up as down.
    assert (found - expected).abs().mean() <= 1.25 * (own - expected).abs().mean()


@every
def test_stored_reference_equals_the_adapter_switched_off(
    name: str, tokenizer: PreTrainedTokenizerBase, sequences: list[TokenSequence]
) -> None:
    adapted = moved(made(name, tokenizer))
    engine = engine_of(adapted, batch_of(sequences))
    needs = Needs(kl="forward")
    store = build_reference(engine, sequences, num_forget_rows=NUM_FORGET, needs=needs)
    batch = batch_of(sequences, [4, 1, 5])
    with torch.no_grad(), engine.running():
        values = token_values(engine, store, batch, needs=needs)
    policy = own_logits(adapted.model, batch).double().log_softmax(-1)
    with adapted.off():
        reference = own_logits(adapted.model, batch).double().log_softmax(-1)
    retained = batch.answers_of("retain")
    divergence = (reference.exp() * (reference - policy)).sum(-1)[retained]
    assert divergence.max() > 1e-3
    assert torch.allclose(values.log_probs.double(), of_labels(policy, batch), atol=2e-5)
    assert torch.allclose(values.reference_log_probs.double(), of_labels(reference, batch), atol=2e-5)
    assert values.kl is not None
    assert torch.allclose(values.kl.double(), divergence, atol=2e-5)


@every
def test_at_the_start_the_kl_is_zero_and_so_is_its_gradient(
    name: str, tokenizer: PreTrainedTokenizerBase, sequences: list[TokenSequence]
) -> None:
    batch, needs = batch_of(sequences), Needs(kl="forward")
    adapted = attach_lora(made(name, tokenizer), LoraSettings(), seed=0)
    engine = engine_of(adapted, batch)
    store = build_reference(engine, sequences, num_forget_rows=NUM_FORGET, needs=needs)
    largest = {}
    with engine.running():
        values = token_values(engine, store, batch, needs=needs)
        assert values.kl is not None
        for part, value in (("kl", values.kl), ("log_probs", values.log_probs)):
            gradients = torch.autograd.grad(value.sum(), adapted.parameters(), retain_graph=True)
            largest[part] = max(gradient.abs().max().item() for gradient in gradients)
    assert values.kl.abs().max() < 1e-5
    assert (values.log_probs - values.reference_log_probs).abs().max() < 1e-5
    # The difference of two expected embeddings that agree to rounding.
    assert largest["kl"] < 1e-5 * largest["log_probs"]


@every
def test_low_rank_targets_and_their_gradients(
    name: str, tokenizer: PreTrainedTokenizerBase, sequences: list[TokenSequence]
) -> None:
    model = made(name, tokenizer)
    below_head = set(trunk_of(model).modules())
    linear = {n for n, m in model.named_modules() if isinstance(m, (nn.Linear, Conv1D)) and m in below_head}
    linear = {n for n in linear if not n.endswith(".router")}  # Llama 4's chooses experts, and gives no product
    assert find_targets(model, SEED_TARGETS).names == CASES[name].targets
    adapted = moved(model, targets=(ALL_LINEAR,))
    assert {n for n, m in adapted.model.named_modules() if isinstance(m, LoraLinear)} == linear
    assert all(".lora_" in n for n, p in adapted.peft.named_parameters() if p.requires_grad)
    batch = batch_of(sequences)
    engine = engine_of(adapted, batch)
    with engine.running():
        engine.label_values(batch).log_probs.sum().backward()
    fast = [parameter.grad for parameter in adapted.parameters()]
    for parameter in adapted.parameters():
        parameter.grad = None
    of_labels(differentiable_logits(adapted.model, batch), batch).sum().backward()
    for parameter, gradient in zip(adapted.parameters(), fast, strict=True):
        assert parameter.dtype == torch.float32
        assert parameter.grad is not None
        assert gradient is not None
        largest = parameter.grad.abs().max().item()
        assert largest > 0
        assert torch.allclose(gradient, parameter.grad, rtol=1e-4, atol=1e-5 * largest)


@every
def test_all_weights_can_be_trained(
    name: str, tokenizer: PreTrainedTokenizerBase, sequences: list[TokenSequence]
) -> None:
    batch, model = batch_of(sequences), made(name, tokenizer)
    trained = train_weights(model, modules=(), layers=None)
    engine = build_engine(model, batch, adapter_off=trained.off)
    assert engine.path == CASES[name].path, engine.notes
    # A reference that cannot be switched back to has a divergence only where its states are stored.
    needs = Needs(kl=None if engine.path == "logits" else "forward")
    store = build_reference(engine, sequences, num_forget_rows=NUM_FORGET, needs=needs)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.mul_(1.1)
    with engine.running():
        values = token_values(engine, store, batch, needs=needs)
        kl = torch.zeros(1) if values.kl is None else values.kl
        found = gradients_of(values.log_probs.sum() + kl.sum(), trained.parameters())
    policy = differentiable_logits(model, batch).log_softmax(-1)
    reference = own_logits(made(name, tokenizer), batch).log_softmax(-1)
    divergence = (reference.exp() * (reference - policy)).sum(-1)[batch.answers_of("retain")]
    if values.kl is None:
        divergence = torch.zeros(1)
    else:
        assert divergence.max() > 1e-3
    assert torch.allclose(kl, divergence, atol=2e-5)
    expected = gradients_of(of_labels(policy, batch).sum() + divergence.sum(), trained.parameters())
    largest = max(gradient.abs().max().item() for gradient in expected)
    for ours, own in zip(found, expected, strict=True):
        assert torch.allclose(ours, own, rtol=1e-3, atol=1e-5 * largest)


def gradients_of(loss: Tensor, parameters: list[nn.Parameter]) -> list[Tensor]:
    """The gradient of each parameter, 0 where the loss does not depend on it (an expert that no token chose)."""
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


@every
def test_a_merged_model_is_saved_loaded_and_generates(
    name: str, tokenizer: PreTrainedTokenizerBase, sequences: list[TokenSequence], tmp_path: Path
) -> None:
    batch = batch_of(sequences)
    plain = made(name, tokenizer)
    names = list(plain.state_dict())
    adapted = moved(plain, targets=(ALL_LINEAR,))
    expected = own_logits(adapted.model, batch)
    state = adapted.merged_state()
    assert sorted(state) == sorted(names)
    save_model(adapted.model, tokenizer, tmp_path / "model", state=state)
    loaded = load_model(str(tmp_path / "model"), device="cpu").model
    assert type(loaded) is type(adapted.model)
    assert torch.allclose(own_logits(loaded, batch), expected, atol=2e-5)
    prompts = ["Mira Tolland keeps bees in", "Which harbour?"]
    answers = generate_answers(loaded, tokenizer, prompts, max_new_tokens=6)
    new = [greedy(adapted.model, tokenizer(prompt).input_ids, 6) for prompt in prompts]
    assert answers == [tokenizer.decode(ids, skip_special_tokens=True) for ids in new]


@torch.no_grad()
def greedy(model: PreTrainedModel, ids: list[int], num_tokens: int) -> list[int]:
    """The likeliest tokens after `ids`, up to the end of sequence, the whole text read anew for each."""
    new: list[int] = []
    while len(new) < num_tokens:
        token = int(model(torch.tensor([ids + new]), use_cache=False).logits[0, -1].argmax())
        if token == 0:
            break
        new.append(token)
    return new


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("olmo", {"clip_qkv": 0.9}),
        ("olmo-3", {"sliding_window": WINDOW + 1}),
        ("llama-3", {"rope_scaling": {**LLAMA3_ROPE, "factor": 4.0}}),
        ("qwen-2.5", {"sliding_window": WINDOW + 1}),
        ("mistral", {"sliding_window": WINDOW + 1}),
        ("mistral", {"sliding_window": WINDOW - 1}),
        ("gemma-2", {"attn_logit_softcapping": 1.2}),
        ("gemma-2", {"final_logit_softcapping": 2.2}),
        ("gemma-2", {"query_pre_attn_scalar": 16}),
        ("gemma-3", {"sliding_window": WINDOW + 1}),
        ("phi-3", {"sliding_window": WINDOW - 1}),
        ("cohere-2", {"sliding_window": WINDOW + 1}),
        ("cohere", {"logit_scale": 0.25}),
        ("granite", {"logits_scaling": 0.6}),
        ("granite", {"attention_multiplier": 0.25}),
    ],
)
def test_what_sets_an_architecture_apart_shows_in_these_small_models(
    name: str, change: dict[str, Any], tokenizer: PreTrainedTokenizerBase, sequences: list[TokenSequence]
) -> None:
    # Otherwise the tests above would pass with a window that is off by one, or a cap that is left out.
    batch = batch_of(sequences)
    usual, changed = (of_labels(own_logits(made(name, tokenizer, **c), batch), batch) for c in ({}, change))
    assert (usual - changed).abs().max() > 10 * 2e-5


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.path == "packed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_carries_over_a_boundary(
    name: str, dtype: torch.dtype, tokenizer: PreTrainedTokenizerBase, sequences: list[TokenSequence]
) -> None:
    model = in_dtype(made(name, tokenizer), dtype)
    with packed_attention(model):
        assert leak_between_sequences(model, batch_of(sequences)) == 0
        assert leak_between_sequences(model, batch_of(sequences, [0])) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_leak_too_small_to_show_in_values_is_found(
    dtype: torch.dtype, tokenizer: PreTrainedTokenizerBase, sequences: list[TokenSequence]
) -> None:
    # A state space model has no attention to replace: what it carries over moves its log-probabilities by 0.1 nats.
    config = hf.MambaConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, state_size=4)
    model = in_dtype(random_model(config), dtype)
    batch = batch_of(sequences)
    with packed_attention(model), torch.no_grad():
        states = packed_states(model, batch.input_ids, batch.position_ids, batch.boundaries)
        found = of_labels(project(states[batch.answer_positions], head_of(model)), batch)
        assert leak_between_sequences(model, batch) > 0
    difference = (found - of_labels(own_logits(model, batch), batch)).abs().max()
    assert 1e-3 < difference < TOLERANCE[torch.bfloat16]
    engine = build_engine(model, batch, adapter_off=nullcontext)
    assert engine.path == "padded"
    assert "carries state over" in engine.notes[0]


@pytest.mark.parametrize("name", ["gemma-2", "gpt-neo", "pythia"])
def test_a_models_own_attention_is_put_back(
    name: str, tokenizer: PreTrainedTokenizerBase, capfd: pytest.CaptureFixture[str], sequences: list[TokenSequence]
) -> None:
    model = made(name, tokenizer)
    before = model.config._attn_implementation
    engine = build_engine(model, batch_of(sequences), adapter_off=nullcontext)
    with engine.running():
        assert (model.config._attn_implementation != before) == (engine.path == "packed")
    assert model.config._attn_implementation == before
    # Transformers would warn of a model whose attention cannot be replaced; it is not asked to.
    assert "attention" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "not told where sequences end"),
        ({"boundaries": (0, 2, 4), "attention_mask": torch.zeros(1, 1, 4, 4)}, "not told where sequences end"),
        ({"boundaries": (0, 2, 4), "position_bias": torch.zeros(1, 2, 4, 4)}, "wants position_bias"),
        ({"boundaries": (0, 2, 4), "is_causal": False}, "wants attention in both directions"),
    ],
)
def test_attention_that_cannot_be_packed_is_refused(given: dict[str, Any], message: str) -> None:
    query = torch.randn(1, 2, 4, 8)
    attend = hf.AttentionInterface()[NAMES["sequences"]]
    with pytest.raises(ValueError, match=message):
        attend(nn.Module(), query, query, query, **{"attention_mask": None, **given})


def rope(kind: str) -> PreTrainedConfig:
    """Frequencies that depend on whether a sequence is longer than 12 tokens."""
    scaled: dict[str, Any] = {"rope_type": kind, "factor": 8.0}
    if kind == "longrope":
        factors = {"short_factor": [1.0] * 4, "long_factor": [1.5, 2.0, 3.0, 4.0]}
        return CASES["phi-3"].config(
            400, sliding_window=None, original_max_position_embeddings=12, rope_scaling={**scaled, **factors}
        )
    return CASES["llama-3"].config(400, max_position_embeddings=12, rope_scaling=scaled)


@pytest.mark.parametrize(
    ("kind", "lengths", "is_refused"),
    [
        ("longrope", [4, 12], False),
        ("longrope", [13, 40], False),
        ("longrope", [12, 13], True),
        ("dynamic", [4, 12], False),
        ("dynamic", [13], True),
        ("longrope", [], False),
    ],
)
@pytest.mark.parametrize("can_be_mixed", [False, True])
def test_lengths_that_change_the_rotation_of_others_are_refused(
    kind: str, lengths: list[int], is_refused: bool, can_be_mixed: bool
) -> None:
    config = rope(kind)
    if not is_refused or (can_be_mixed and kind == "longrope"):
        check_lengths(config, lengths, can_be_mixed=can_be_mixed)
        return
    with pytest.raises(ModelError, match=f"at most 12 tokens, .*'{kind}'.*{lengths[-1]} tokens; .*--max-length 12"):
        check_lengths(config, lengths, can_be_mixed=can_be_mixed)


@pytest.mark.parametrize("path", ["packed", "padded", "logits"])
def test_short_and_long_sequences_of_a_pack_are_each_rotated_as_if_alone(
    path: Route, tokenizer: PreTrainedTokenizerBase, sequences: list[TokenSequence]
) -> None:
    batch, adapted = batch_of(sequences), moved(random_model(rope("longrope")))
    engine = replace(engine_of(adapted, batch), path=path, selection=None)
    expected = of_labels(differentiable_logits(adapted.model, batch), batch)
    with engine.running():
        found = engine.label_values(batch).log_probs
    assert torch.allclose(found, expected, atol=2e-5)
    ours = torch.autograd.grad(found.sum(), adapted.parameters())
    for gradient, own in zip(ours, torch.autograd.grad(expected.sum(), adapted.parameters()), strict=True):
        assert torch.allclose(gradient, own, rtol=1e-4, atol=1e-5 * own.abs().max().item())
    # Rotated all as the longest, they would differ.
    model = adapted.model
    together = model(input_ids=torch.stack([batch.input_ids[:13], batch.input_ids[-13:]])).logits
    assert not torch.allclose(together[0, :4], model(input_ids=batch.input_ids[None, :4]).logits[0], atol=1e-3)


@pytest.mark.parametrize("chosen", [[2, 4], [0, 1, 3, 5], range(6)])
def test_packs_of_any_lengths_take_the_packed_path(
    chosen: Sequence[int], tokenizer: PreTrainedTokenizerBase, sequences: list[TokenSequence]
) -> None:
    batch, model = batch_of(sequences, chosen), random_model(rope("longrope"))
    engine = build_engine(model, batch, adapter_off=nullcontext)
    assert engine.path == "packed", engine.notes
    expected = of_labels(own_logits(model, batch), batch)
    assert torch.allclose(engine_log_probs(engine, batch), expected, atol=2e-5)


@every
def test_decoder_layers_and_their_outputs(
    name: str, tokenizer: PreTrainedTokenizerBase, sequences: list[TokenSequence]
) -> None:
    model, batch = made(name, tokenizer), batch_of(sequences)
    layers = decoder_layers(model)
    assert len(layers) == model.config.num_hidden_layers
    assert all(type(layer).__name__.endswith(("Layer", "Block")) for layer in layers)
    engine = build_engine(model, batch, adapter_off=nullcontext)
    if engine.path == "logits":
        return
    own = []
    for start, end in pairwise(batch.boundaries):
        with torch.no_grad():
            own.append(model(batch.input_ids[None, start:end], output_hidden_states=True).hidden_states[1][0])
    with torch.no_grad(), engine.running():
        _, hidden = engine.states_and_activations(batch, layer=0)
    assert torch.allclose(hidden, torch.cat(own)[batch.answer_positions], atol=2e-5)


def test_a_model_that_token_ids_alone_are_not_enough_for_is_refused_by_name(
    tokenizer: PreTrainedTokenizerBase, sequences: list[TokenSequence]
) -> None:
    # It wants to be told the language first.
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
    }
    model = random_model(hf.XmodConfig(vocab_size=len(tokenizer), is_decoder=True, **sizes))
    with pytest.raises(ModelError, match=r"this XmodForCausalLM fails \(ValueError: Input language unknown"):
        build_engine(model, batch_of(sequences), adapter_off=nullcontext)


def test_a_context_without_a_limit_has_none() -> None:
    assert context_length(hf.XLNetConfig()) is None


def test_a_model_that_sees_is_unlearned_in_its_text_part(
    tokenizer: PreTrainedTokenizerBase, sequences: list[TokenSequence]
) -> None:
    text = CASES["gemma-3"].config(len(tokenizer), num_hidden_layers=2, layer_types=ALTERNATING[:2]).to_dict()
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = hf.Gemma3Config(
        text_config=text, vision_config={**vision, "image_size": 28, "patch_size": 14}, mm_tokens_per_image=4
    )
    model = random_model(config)
    assert type(trunk_of(model)) is hf.Gemma3TextModel
    assert {type(layer).__name__ for layer in decoder_layers(model)} == {"Gemma3DecoderLayer"}
    adapted, batch = moved(model), batch_of(sequences)
    assert all("vision" not in name for name, p in adapted.peft.named_parameters() if p.requires_grad)
    engine = engine_of(adapted, batch)
    assert engine.path == "packed", engine.notes
    expected = of_labels(own_logits(adapted.model, batch), batch)
    assert torch.allclose(engine_log_probs(engine, batch), expected, atol=2e-5)
