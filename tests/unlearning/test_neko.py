"""NEKO as published: two zipped streams, truncated rows, a KL at every place of padded rows, patience of four."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from letheon import UnlearnSettings
from letheon.data.packing import pack
from letheon.data.rows import Row, write_rows
from letheon.data.sequences import tokenise_all
from letheon.engine.values import token_values
from letheon.errors import DataError
from letheon.model.loading import load_model
from letheon.objective.catalogue import get_method
from letheon.objective.parts import needs_of
from letheon.objective.retain import mean_kl
from letheon.objective.values import roles_of
from letheon.training import step
from letheon.training.tracking import Silent
from letheon.unlearning.inputs import read_inputs
from letheon.unlearning.prepare import prepare
from letheon.unlearning.problem import Problem
from letheon.unlearning.resolve import resolve_settings
from running import events, knowing_model, model_of, run, same, short_run

LENGTH = 40


@pytest.fixture
def given(tmp_path: Path, rows: list[Row], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    return {
        **short_run(tmp_path, rows, knowing_model(tokenizer, rows), tokenizer),
        "method": "neko",
        "learning_rate": 1e-3,
        "max_length": LENGTH,
        "overlong": "truncate",
        "end_of_sequence": "none",
    }


def problem_of(given: dict[str, Any], **changed: Any) -> Problem:
    settings = resolve_settings(UnlearnSettings.of({**given, **changed}))
    loaded, inputs = load_model(settings.model), read_inputs(settings)
    return prepare(
        loaded, inputs, settings, method=get_method(settings.method), cache_dir=None, observer=Silent()
    ).problem


@pytest.mark.parametrize("adapt", ["weights", "lora"])
def test_the_kl_of_all_places_equals_two_models_on_padded_rows(
    adapt: str, given: dict[str, Any], rows: list[Row], tokenizer: PreTrainedTokenizerBase
) -> None:
    problem = problem_of(given, positions="all", adapt=adapt)
    pad = tokenizer.pad_token_id
    assert pad != tokenizer.eos_token_id
    plain = tokenise_all(rows, tokenizer, template="joined", max_length=256)
    padded = [[*s.input_ids[:LENGTH], *[pad] * (LENGTH - len(s.input_ids))] for s in plain[3:]]
    assert [list(s.input_ids) for s in problem.sequences[3:]] == padded
    assert list(problem.sequences[:3]) == plain[:3]  # forget rows are neither padded nor scored on prompts
    reference = copy.deepcopy(load_model(given["model"]).model).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in problem.adapted.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    problem.adapted.update_model()
    batch = pack([problem.sequences[i] for i in (3, 4, 5)], is_forget=[False] * 3, row_index=[3, 4, 5])
    with torch.no_grad(), problem.engine.running():
        values = token_values(problem.engine, problem.reference, batch, needs=needs_of(problem.terms))
        assert values.kl is not None
        found = float(mean_kl(values.kl, roles_of(batch).retain))
    # The authors' form: whole padded rows through both models, padding masked, the mean over all places.
    policy = copy.deepcopy(reference)
    policy.load_state_dict(problem.adapted.merged_state())
    ids = torch.tensor(padded)
    with torch.no_grad():
        p, q = (model(ids, attention_mask=(ids != pad).long()).logits.log_softmax(-1) for model in (policy, reference))
        unmasked, _ = (model(ids).logits.log_softmax(-1) for model in (policy, reference))
    expected = float((q.exp() * (q - p)).sum(-1).mean())
    assert (p - unmasked).abs().max() > 0.1
    assert found == pytest.approx(expected, abs=2e-5)
    assert values.kl.shape == (3 * LENGTH,)
    # Of a batch in pieces, as of one whole.
    gradients = [gradient_of(problem, max_tokens) for max_tokens in (10_000, LENGTH)]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)


def gradient_of(problem: Problem, max_tokens: int) -> torch.Tensor:
    parameters = problem.adapted.parameters()
    for parameter in parameters:
        parameter.grad = None
    with problem.engine.running():
        step.accumulate(problem, [0, 3, 4, 5], max_tokens=max_tokens)
    return torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])


def test_places_matter(given: dict[str, Any], tmp_path: Path) -> None:
    answers, everywhere = run(given, epochs=1), run(given, epochs=1, positions="all", out=tmp_path / "all")
    assert not same(model_of(answers), model_of(everywhere))
    first = [events(report.folder, "step")[0]["terms"] for report in (answers, everywhere)]
    assert first[0]["ga_by_row"] == pytest.approx(first[1]["ga_by_row"])


def test_truncated_rows_keep_what_is_left_of_their_answers(
    given: dict[str, Any], rows: list[Row], tokenizer: PreTrainedTokenizerBase
) -> None:
    plain = tokenise_all(rows, tokenizer, template="joined", max_length=256)
    length = 20
    assert {len(s.input_ids) > length for s in plain} == {True, False}
    problem = problem_of(given, max_length=length)
    for whole, cut in zip(plain, problem.sequences, strict=True):
        assert cut.input_ids == whole.input_ids[:length]
        assert cut.num_answer_tokens == max(0, min(len(whole.input_ids), length) - whole.answer_start)
    # Scores look at whole answers.
    assert list(problem.probes.answers) == plain
    with pytest.raises(DataError, match=r"at most 20 fit"):
        problem_of(given, max_length=length, overlong="refuse")


def test_prompts_are_cut_from_the_left_to_four_fifths(
    given: dict[str, Any], rows: list[Row], tokenizer: PreTrainedTokenizerBase
) -> None:
    plain = tokenise_all(rows, tokenizer, template="joined", max_length=256)
    problem = problem_of(given, max_length=10, overlong="truncate-prompt")
    for whole, cut in zip(plain, problem.sequences, strict=True):
        prompt, answer = whole.input_ids[: whole.answer_start], whole.input_ids[whole.answer_start :]
        kept = prompt[-8:]  # int(0.8 * 10)
        assert cut.input_ids == (*kept, *answer)[:10]
        assert cut.num_answer_tokens == min(len(answer), 10 - len(kept)) > 0
    assert max(s.answer_start for s in plain) > 8 > min(s.answer_start for s in plain)


def test_rows_without_any_answer_left_are_said_and_do_no_harm(given: dict[str, Any], tmp_path: Path) -> None:
    given["answerless"] = "skip"
    some = run(given, max_length=7)
    notes = [line["message"] for line in events(some.folder, "note")]
    assert any("rows have no answer token in their first 7 tokens" in note for note in notes)
    assert all(line["loss"] is not None for line in events(some.folder, "step"))
    # Even where nothing at all is left to train on.
    nothing = run(given, max_length=2, out=tmp_path / "nothing", epochs=1)
    before = run(given, max_length=7, out=tmp_path / "before", epochs=1, learning_rate=1e-12)
    for name, value in model_of(nothing).items():
        assert torch.allclose(value, model_of(before)[name], atol=1e-9)


def test_two_zipped_streams(
    given: dict[str, Any], rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget = [Row(f"f{i}qa0", f"Who lives at {i}?", f"Nobody {i}", "Task1", "question") for i in range(7)]
    retain = [Row(f"r{i}qa0", f"Where is {i}?", f"Here {i}", "Task1", "question") for i in range(5)]
    write_rows(forget, tmp_path / "many.jsonl")
    write_rows(retain, tmp_path / "kept.jsonl")
    steps: list[list[int]] = []
    add_gradients = step.add_gradients

    def watch(problem: Problem, wanted: Any, **kwargs: Any) -> Any:
        steps.append(list(wanted))
        return add_gradients(problem, wanted, **kwargs)

    monkeypatch.setattr(step, "add_gradients", watch)
    run(
        given,
        forget=str(tmp_path / "many.jsonl"),
        retain=str(tmp_path / "kept.jsonl"),
        batch_size=3,
        retain_batch_size=4,
        epochs=2,
    )
    # 7 forget rows by 3 are 3 steps; beside them 4 retain rows each, numbered from 7.
    assert [sum(row < 7 for row in rows) for rows in steps] == [3, 3, 1, 3, 3, 1]
    assert [sum(row >= 7 for row in rows) for rows in steps] == [4] * 6
    for epoch in (steps[:3], steps[3:]):
        assert sorted(row for rows in epoch for row in rows if row < 7) == list(range(7))
    stream = [row for rows in steps for row in rows if row >= 7]
    assert [sorted(stream[start : start + 5]) for start in range(0, 20, 5)] == [list(range(7, 12))] * 4


@pytest.mark.parametrize("positions", ["all", "answer"])
def test_a_run_as_published_ends_by_patience_with_a_falling_learning_rate(
    positions: str, given: dict[str, Any], rows: list[Row], tokenizer: PreTrainedTokenizerBase
) -> None:
    report = run(
        given,
        epochs=60,
        max_steps=60,
        learning_rate_schedule="linear",
        validation=0.34,
        patience=4,
        patience_on="retain_kl",
        checkpoint_steps=3,
        keep="last",
        positions=positions,
        template="neko",
    )
    assert report.reason == "patience: retain_kl not better for 4 scorings"
    scored = events(report.folder, "interim")
    assert [line["step"] for line in scored] == list(range(3, 3 * len(scored) + 1, 3))
    divergences = [line["retain_kl"] for line in scored]
    assert len(divergences) - 1 - divergences.index(min(divergences)) == 4
    # The last value from two models, on the retain row that is left out.
    left_out = read_inputs(UnlearnSettings.of({**given, "validation": 0.34})).left_out[1]
    (sequence,) = tokenise_all(list(left_out), tokenizer, template="neko", max_length=256)
    ids, start = torch.tensor(sequence.input_ids[:LENGTH]), sequence.answer_start
    if positions == "all":
        ids = torch.cat([ids, torch.full((LENGTH - len(ids),), int(tokenizer.pad_token_id))])
    with torch.no_grad():
        mask = torch.arange(len(ids)) < min(len(sequence.input_ids), LENGTH)
        p, q = (
            load_model(path).model(ids[None], attention_mask=mask[None].long()).logits[0].log_softmax(-1)
            for path in (str(report.model), given["model"])
        )
    kl = (q.exp() * (q - p)).sum(-1)
    expected = kl.mean() if positions == "all" else kl[start - 1 : -1].mean()
    assert divergences[-1] == pytest.approx(float(expected), rel=1e-3, abs=1e-6)
    assert divergences[-1] > 1e-4
    rates = [line["learning_rate"] for line in events(report.folder, "step")]
    assert rates == pytest.approx([1e-3 * (1 - step / 60) for step in range(len(rates))])
    provenance = json.loads((report.folder / "provenance.json").read_text())
    assert provenance["adapt"] == "weights"
    assert provenance["form"]["template"] == "neko"
