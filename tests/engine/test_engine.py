"""Packed forward, reference store and the loss: equal to one sequence at a time, whatever the batch looks like."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from letheon import Row
from letheon.data.alternatives import other_answers
from letheon.data.packing import PackedBatch, pack
from letheon.data.probing import AnswerValues
from letheon.data.schedules import MixedSchedule
from letheon.data.sequences import TokenSequence, tokenise_all
from letheon.engine.engine import Engine, padded_logits
from letheon.engine.engine import Path as EnginePath
from letheon.engine.head import forward_kl, reverse_kl
from letheon.engine.paths import build_engine, reads_ahead
from letheon.engine.reference import build_reference
from letheon.engine.reference_cache import load_or_build_reference
from letheon.engine.values import ReferenceStore, token_values
from letheon.errors import ModelError
from letheon.model.adapted import Adapted
from letheon.model.adapters import LoraSettings, attach_lora
from letheon.model.fingerprint import fingerprint
from letheon.model.layers import decoder_layers
from letheon.objective.catalogue import METHODS, get_method
from letheon.objective.methods import Coefficients, resolve
from letheon.objective.parts import Term, needs_of
from letheon.objective.values import Needs
from letheon.training.step import accumulate
from letheon.unlearning.interim import Probes, answer_values, interim_score, text_losses
from letheon.unlearning.problem import Problem
from small import tiny_bert, tiny_model

ARCHITECTURES = ["olmo", "llama", "gpt-neox", "qwen", "gemma", "gpt2"]
NUM_FORGET = 3


def sequences_of(rows: list[Row], tokenizer: PreTrainedTokenizerBase) -> list[TokenSequence]:
    return tokenise_all(rows, tokenizer, template="joined", max_length=200)


def batch_of(sequences: list[TokenSequence], indices: Sequence[int]) -> PackedBatch:
    return pack([sequences[i] for i in indices], is_forget=[i < NUM_FORGET for i in indices], row_index=indices)


def moved(model: PreTrainedModel, *, scale: float = 0.3) -> Adapted:
    """The model with an adapter that changes it."""
    adapted = attach_lora(model, LoraSettings(rank=3, alpha=3), seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in adapted.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return adapted


def in_dtype(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    torch.nn.Module.to(model, dtype)
    return model


def engine_of(adapted: Adapted, sequences: list[TokenSequence]) -> Engine:
    return build_engine(adapted.model, batch_of(sequences, range(len(sequences))), adapter_off=adapted.off)


def problem_of(
    adapted: Adapted,
    rows: list[Row],
    sequences: list[TokenSequence],
    terms: tuple[Term, ...],
    *,
    path: EnginePath = "packed",
) -> Problem:
    engine = replace(engine_of(adapted, sequences), path=path)
    store = build_reference(
        engine,
        sequences,
        num_forget_rows=NUM_FORGET,
        num_retain_rows=len(rows) - NUM_FORGET,
        needs=needs_of(terms),
    )
    return Problem(
        engine=engine,
        adapted=adapted,
        rows=rows,
        sequences=sequences,
        num_forget_rows=NUM_FORGET,
        reference=store,
        terms=terms,
        schedule=MixedSchedule(len(rows), 2, 0),
        probes=Probes(rows, sequences[: len(rows)], NUM_FORGET),
        start=None,
    )


def terms_of(method: str, **given: float | str) -> tuple[Term, ...]:
    declared = get_method(method)
    layer = {declared.layer: 1} if declared.layer else {}
    return declared.terms(Coefficients({**resolve(declared, {**layer, **given}).values, **declared.runs[0]}))


def gradients(problem: Problem, steps: list[list[int]], *, max_tokens: int = 10_000) -> tuple[Tensor, list[float]]:
    """All adapter gradients of the given batches, added up, and the values of the terms."""
    for parameter in problem.adapted.parameters():
        parameter.grad = None
    values: list[float] = []
    with problem.engine.running():
        for rows in steps:
            parts, _ = accumulate(problem, rows, max_tokens=max_tokens)
            values += [value for value in parts.values() if value is not None]
    found = [p.grad.flatten() for p in problem.adapted.parameters() if p.grad is not None]
    return torch.cat(found), values


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_forward_equals_one_by_one(
    architecture: str, tokenizer: PreTrainedTokenizerBase, rows: list[Row]
) -> None:
    model = tiny_model(architecture, tokenizer)
    sequences = sequences_of(rows, tokenizer)
    adapted = moved(model)
    engine = engine_of(adapted, sequences)
    assert engine.path == "packed", engine.notes
    with engine.running(), torch.no_grad():
        packed = engine.label_values(batch_of(sequences, range(6))).log_probs
    one_by_one = []
    for sequence in sequences:
        logits = model(torch.tensor([sequence.input_ids])).logits[0].log_softmax(-1)
        positions = range(sequence.answer_start - 1, len(sequence.input_ids) - 1)
        one_by_one += [logits[t, sequence.input_ids[t + 1]] for t in positions]
    assert torch.allclose(packed, torch.stack(one_by_one), atol=2e-5)


def test_states_do_not_depend_on_the_pack(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[Row]
) -> None:
    sequences = sequences_of(rows, tokenizer)
    adapted = moved(model)
    engine = engine_of(adapted, sequences)
    with engine.running(), torch.no_grad():
        alone = engine.states(batch_of(sequences, [3]))
        together = batch_of(sequences, [5, 3, 0])
        packed = engine.states(together)[together.owner == 1]
    assert torch.allclose(alone, packed, atol=1e-6)


@pytest.mark.parametrize("path", ["packed", "padded", "logits"])
@pytest.mark.parametrize("kl", ["forward", "reverse"])
def test_stored_reference_equals_the_adapter_switched_off(
    path: EnginePath, kl: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[Row]
) -> None:
    sequences = sequences_of(rows, tokenizer)
    adapted = moved(model)
    terms = terms_of("low-rank-npo", kl=kl, npo="logits")
    problem = problem_of(adapted, rows, sequences, terms, path=path)
    batch = batch_of(sequences, [4, 1, 5])
    with torch.no_grad(), problem.engine.running():
        values = token_values(problem.engine, problem.reference, batch, needs=needs_of(terms))
    with torch.no_grad():
        policy = padded_logits(adapted.model, batch)
        with adapted.off():
            reference = padded_logits(adapted.model, batch)
    forget, retain = batch.answers_of("forget"), batch.answers_of("retain")
    divergence = forward_kl if kl == "forward" else reverse_kl
    gold = batch.labels[:, None]
    assert torch.allclose(values.log_probs, policy.log_softmax(-1).gather(1, gold)[:, 0], atol=2e-5)
    assert torch.allclose(values.reference_log_probs, reference.log_softmax(-1).gather(1, gold)[:, 0], atol=2e-5)
    assert values.kl is not None
    assert torch.allclose(values.kl, divergence(policy[retain], reference[retain]), atol=2e-5)
    assert values.logits is not None
    assert torch.allclose(values.logits, policy[forget], atol=2e-5)
    assert values.reference_logits is not None
    assert torch.allclose(values.reference_logits, reference[forget], atol=2e-5)


def test_at_the_start_ratio_and_kl_are_zero(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[Row]
) -> None:
    sequences = sequences_of(rows, tokenizer)
    adapted = attach_lora(model, LoraSettings(), seed=0)
    problem = problem_of(adapted, rows, sequences, terms_of("low-rank-npo"))
    with torch.no_grad(), problem.engine.running():
        values = token_values(
            problem.engine, problem.reference, batch_of(sequences, range(6)), needs=Needs(kl="forward")
        )
    assert (values.log_probs - values.reference_log_probs).abs().max().item() < 1e-5
    assert values.kl is not None
    assert values.kl.abs().max().item() < 1e-5


@pytest.mark.parametrize("method", [name for name in METHODS if "general" not in METHODS[name].settings])
def test_gradients_do_not_depend_on_order_padding_or_split(
    method: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[Row]
) -> None:
    sequences = sequences_of([*rows, *other_answers(rows[:NUM_FORGET], per_row=1, seed=0)], tokenizer)
    # Alternatives of the forget rows 0 to 2 are 6 to 8; a step has them in the order of its forget rows.
    beside, shuffled_beside = ([6, 7, 8], [8, 6, 7]) if METHODS[method].alternatives else ([], [])
    adapted = moved(model)
    terms = terms_of(method)
    problem = problem_of(adapted, rows, sequences, terms)
    step = [0, 1, 2, 3, 4, 5, *beside]
    whole, values = gradients(problem, [step])
    shuffled, shuffled_values = gradients(problem, [[4, 2, 5, 0, 3, 1, *shuffled_beside]])
    split, split_values = gradients(problem, [step], max_tokens=20)
    others, other_values = [shuffled, split], [shuffled_values, split_values]
    for path in ("padded", "logits"):
        if path == "padded" or needs_of(terms).activations is None:
            found, values_there = gradients(problem_of(adapted, rows, sequences, terms, path=path), [step])
            others.append(found)
            other_values.append(values_there)
    assert whole.abs().max().item() > 1e-4
    for other in others:
        assert torch.allclose(other, whole, rtol=1e-3, atol=2e-6 * max(1.0, float(whole.abs().max())))
    for found_values in other_values:
        assert found_values == pytest.approx(values, rel=1e-4, abs=1e-5)


def test_a_step_of_one_role_has_no_value_for_the_other(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[Row]
) -> None:
    sequences = sequences_of(rows, tokenizer)
    problem = problem_of(moved(model), rows, sequences, terms_of("low-rank-npo"))
    with problem.engine.running():
        forget_only, _ = accumulate(problem, [0, 1], max_tokens=1000)
        retain_only, _ = accumulate(problem, [3, 4], max_tokens=1000)
    assert forget_only["npo"] is not None
    assert forget_only["retain_nll"] is forget_only["retain_kl"] is None
    assert retain_only["npo"] is None
    assert retain_only["retain_kl"] is not None


def test_an_engine_falls_back_where_the_packed_forward_differs(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    sequences = sequences_of(rows, tokenizer)
    adapted = moved(model)
    monkeypatch.setattr("letheon.engine.engine.packed_states", lambda *_: torch.zeros(10_000, 32))
    engine = engine_of(adapted, sequences)
    assert engine.path == "padded"
    assert "packed forward differs" in engine.notes[0]


@pytest.mark.parametrize("is_decoder", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_reads_ahead_is_refused(
    is_decoder: bool, dtype: torch.dtype, tokenizer: PreTrainedTokenizerBase, rows: list[Row]
) -> None:
    model = in_dtype(tiny_bert(len(tokenizer), is_decoder=is_decoder), dtype)
    model.eval()
    probe = batch_of(sequences_of(rows, tokenizer), range(len(rows)))
    if is_decoder:
        assert build_engine(model, probe, adapter_off=nullcontext).path
    else:
        with pytest.raises(ModelError, match="in this BertLMHeadModel a later token changes"):
            build_engine(model, probe, adapter_off=nullcontext)


def test_one_token_is_not_ahead_of_anything(tokenizer: PreTrainedTokenizerBase) -> None:
    alone = TokenSequence((5,), 0)
    assert not reads_ahead(tiny_model("olmo", tokenizer), pack([alone], is_forget=[True], row_index=[0]))


def test_reference_store_is_reused_and_rebuilt_when_rows_or_weights_change(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[Row],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sequences = sequences_of(rows, tokenizer)
    adapted = attach_lora(model, LoraSettings(), seed=0)
    engine = engine_of(adapted, sequences)
    built: list[int] = []

    def counting(*args: object, **kwargs: object) -> ReferenceStore:
        built.append(1)
        return build_reference(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr("letheon.engine.reference_cache.build_reference", counting)

    def get(wanted: list[TokenSequence]) -> ReferenceStore:
        return load_or_build_reference(
            engine,
            wanted,
            num_forget_rows=NUM_FORGET,
            needs=Needs(kl="forward"),
            model_fingerprint=fingerprint(model),
            cache_dir=tmp_path,
        )

    first, second = get(sequences), get(sequences)
    assert len(built) == 1
    assert torch.equal(first.log_probs, second.log_probs)
    assert first.embedding is not None
    assert second.embedding is not None
    assert torch.equal(first.embedding, second.embedding)
    get([*sequences[:-1], sequences[0]])
    assert len(built) == 2
    with torch.no_grad():
        next(model.parameters()).add_(0.1)
    get(sequences)
    assert len(built) == 3
    files = list(tmp_path.rglob("*.safetensors"))
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    files[0].write_bytes(b"torn")
    for file in files:
        file.write_bytes(b"torn")
    get(sequences)
    assert len(built) == 4


def test_bfloat16_terms_are_finite_and_close_to_float32(tokenizer: PreTrainedTokenizerBase, rows: list[Row]) -> None:
    sequences = sequences_of(rows, tokenizer)
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        adapted = moved(in_dtype(tiny_model("olmo", tokenizer), dtype), scale=0.05)
        problem = problem_of(adapted, rows, sequences, terms_of("low-rank-npo"))
        assert all(p.dtype == torch.float32 for p in adapted.parameters())
        found.append(gradients(problem, [[0, 1, 2, 3, 4, 5]]))
    (exact, values), (rounded, rounded_values) = found
    assert torch.isfinite(rounded).all()
    assert rounded_values == pytest.approx(values, rel=0.05, abs=0.05)
    assert torch.nn.functional.cosine_similarity(exact, rounded, dim=0).item() > 0.98


def test_recall_is_the_share_of_the_answer_before_the_first_miss(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[Row]
) -> None:
    sequences = sequences_of(rows, tokenizer)
    engine = engine_of(moved(model), sequences)
    found = []
    for sequence in sequences:
        with torch.no_grad():
            choices = model(torch.tensor([sequence.input_ids])).logits[0].argmax(-1).tolist()
        answer = range(sequence.answer_start, len(sequence.input_ids))
        hits = [choices[t - 1] == sequence.input_ids[t] for t in answer]
        found.append((hits.index(False) if False in hits else len(hits)) / len(hits))
    assert answer_values(engine, sequences).recalls == pytest.approx(tuple(found))
    # A sequence whose answer is what the model says is recalled whole.
    said = list(sequences[0].input_ids[: sequences[0].answer_start])
    for _ in range(4):
        with torch.no_grad():
            said.append(int(model(torch.tensor([said])).logits[0, -1].argmax()))
    assert answer_values(engine, [TokenSequence(tuple(said), len(said) - 4)]).recalls == (1.0,)


def test_interim_score_by_hand(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    sequences = sequences_of(rows, tokenizer)
    engine = engine_of(moved(model), sequences)
    # forget: completion .2 (Task1), questions .5 and 1 -> 0 and 1 (Task2, Task1); retain: .6 (Task1), 1 (Task2), .9
    found = AnswerValues(
        recalls=(0.2, 0.5, 0.75, 0.6, 1.0, 0.9), losses=(9.0, 9.0, 9.0, 1.0, 2.0, 3.0), num_tokens=(5, 1, 1, 2, 3, 5)
    )
    monkeypatch.setattr("letheon.unlearning.interim.answer_values", lambda *_, **__: found)
    score = interim_score(engine, Probes(rows, sequences, NUM_FORGET), step=3, epoch=1)
    terms = [0.8, 1.0, 1.0, 0.6, 1.0, 0.9]
    assert score.score == pytest.approx(len(terms) / sum(1 / term for term in terms))
    assert score.values["forget_recall"] == pytest.approx(0.2 / 3)
    assert score.values["retain_recall"] == pytest.approx(2.5 / 3)
    assert score.values["retain_loss"] == pytest.approx(6 / 10)
    assert score.values["membership"] is score.values["text_loss"] is None
    # Forget texts cost more than one holdout document and less than the other: AUC 1/2, membership score 1.
    holdout = sequences[4:]
    monkeypatch.setattr(
        "letheon.unlearning.interim.text_losses", lambda _, s: ([1.0, 3.0] if s is holdout else [2.0]) if s else []
    )
    hidden = interim_score(engine, Probes(rows, sequences, NUM_FORGET, holdout), step=3, epoch=1)
    assert hidden.values["membership"] == pytest.approx(1.0)
    assert hidden.values["text_loss"] == pytest.approx(2.0)
    assert hidden.score == pytest.approx((score.score + 1) / 2)


def test_forget_texts_are_of_the_task_that_the_holdout_documents_resemble(
    tokenizer: PreTrainedTokenizerBase, rows: list[Row]
) -> None:
    sequences = sequences_of(rows, tokenizer)
    every = Probes(rows, sequences, NUM_FORGET, sequences[4:])
    assert every.forget_texts == [replace(sequences[0], answer_start=1)]  # the only completion
    of_questions = Probes(rows, sequences, NUM_FORGET, sequences[4:], holdout_task="Task2")
    assert of_questions.forget_texts == [replace(sequences[1], answer_start=1)]


def test_text_losses_equal_the_models_own(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[Row]
) -> None:
    sequences = [replace(s, answer_start=1) for s in sequences_of(rows, tokenizer)]
    engine = engine_of(moved(model), sequences)
    own = []
    for sequence in sequences:
        ids = torch.tensor(sequence.input_ids)
        with torch.no_grad():
            logits = model(ids[None]).logits[0]
        own.append(torch.nn.functional.cross_entropy(logits[:-1], ids[1:]).item())
    assert text_losses(engine, sequences) == pytest.approx(own, abs=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_last_layer_at_answer_positions_gives_the_same_terms_and_gradients(
    architecture: str, tokenizer: PreTrainedTokenizerBase, rows: list[Row]
) -> None:
    sequences = sequences_of(rows, tokenizer)
    adapted = moved(tiny_model(architecture, tokenizer))
    trimmed = problem_of(adapted, rows, sequences, terms_of("low-rank-npo"))
    assert trimmed.engine.selection is not None
    whole = replace(trimmed, engine=replace(trimmed.engine, selection=None))
    expected, values = gradients(whole, [[0, 1, 2, 3, 4, 5]])
    found, values_there = gradients(trimmed, [[0, 1, 2, 3, 4, 5]])
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-6)
    assert values_there == pytest.approx(values, rel=1e-5, abs=1e-6)
    # Afterwards the model is whole again.
    ids = torch.tensor([sequences[0].input_ids])
    with torch.no_grad():
        assert adapted.model(ids).logits[0, 0].abs().max() > 0
    assert not any("forward" in module.__dict__ for module in adapted.model.modules())


def test_the_last_layers_mlp_sees_answer_positions_only(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[Row]
) -> None:
    sequences = sequences_of(rows, tokenizer)
    engine = engine_of(moved(model), sequences)
    batch = batch_of(sequences, [0, 3])
    seen: list[int] = []
    activations = [layer.get_submodule("mlp.act_fn") for layer in decoder_layers(model)]
    hooks = [module.register_forward_hook(lambda _m, _i, out: seen.append(out.shape[1])) for module in activations]
    with torch.no_grad(), engine.running():
        engine.states(batch)
    for hook in hooks:
        hook.remove()
    assert seen == [batch.num_tokens, len(batch.labels)]
