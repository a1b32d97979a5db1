"""The method `quantile` in a run: where it takes the losses, by which documents, and what it refuses."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from letheon import Row, UnlearnSettings
from letheon.errors import SettingsError
from letheon.model.loading import load_model
from letheon.objective.catalogue import get_method
from letheon.training.step import accumulate
from letheon.training.tracking import Silent
from letheon.unlearning.inputs import read_inputs
from letheon.unlearning.prepare import prepare
from letheon.unlearning.problem import Problem
from letheon.unlearning.resolve import resolve_settings
from running import events, knowing_model, run, short_run, unseen_for


@pytest.fixture
def given(tmp_path: Path, rows: list[Row], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    short = short_run(tmp_path, rows, knowing_model(tokenizer, rows), tokenizer)
    return {**short, **unseen_for("quantile", tmp_path), "method": "quantile"}


def problem_of(given: dict[str, Any]) -> Problem:
    settings = resolve_settings(UnlearnSettings.of(given))
    loaded, inputs = load_model(settings.model), read_inputs(settings)
    return prepare(
        loaded, inputs, settings, method=get_method("quantile"), cache_dir=None, observer=Silent()
    ).problem  # fmt: skip


def test_the_losses_of_the_run_are_those_of_its_sequences(given: dict[str, Any]) -> None:
    problem = problem_of(given)
    model = problem.engine.model
    found = problem.reference.run_losses(torch.tensor([2, 0]))
    assert problem.general is not None
    for losses, first in ((found.forget, 0), (found.general, problem.general.first)):
        for loss, sequence in zip(losses.tolist(), problem.sequences[first:], strict=False):
            ids = torch.tensor([sequence.input_ids])
            with torch.no_grad(), problem.adapted.off():
                logits = model(ids).logits[0].float()
            start = sequence.answer_start
            naive = torch.nn.functional.cross_entropy(logits[start - 1 : -1], ids[0, start:])
            assert loss == pytest.approx(float(naive), abs=1e-4)
    assert len(found.forget) == 3
    assert found.row_index.tolist() == [2, 0]


def test_a_step_in_pieces_gives_the_gradient_of_the_whole(given: dict[str, Any]) -> None:
    problem = problem_of(given)
    step = problem.rows_of_step(0)
    found = []
    for rows, most in ((step, 10_000), (step[::-1], 20)):
        problem.adapted.model.zero_grad()
        with problem.engine.running():
            accumulate(problem, rows, max_tokens=most)
        found.append(torch.cat([p.grad.flatten() for p in problem.adapted.parameters() if p.grad is not None]))
    assert found[0].abs().max() > 1e-4
    assert torch.allclose(found[0], found[1], rtol=1e-3, atol=2e-6 * float(found[0].abs().max()))


@pytest.mark.slow
def test_forget_texts_end_where_unseen_text_is(given: dict[str, Any]) -> None:
    report = run({**given, "epochs": 40, "learning_rate": 2e-2, "keep": "last"})
    steps = [line["terms"]["transport"] for line in events(report.folder, "step")]
    known = [value for value in steps if value is not None]
    assert known[-1] < known[0] / 10
    assert "documents of --holdout" in (report.folder / "log.jsonl").read_text()


def test_documents_are_needed_and_nothing_else_is_held(given: dict[str, Any]) -> None:
    def resolved(**changed: Any) -> UnlearnSettings:
        return resolve_settings(UnlearnSettings.of({**given, **changed}))

    assert (resolved().general, resolved().span) == ("holdout", "text")
    with pytest.raises(SettingsError, match="general: 'holdout' holds documents that the model never saw"):
        resolved(holdout=None)
    with pytest.raises(SettingsError, match="general: method 'quantile' moves losses to those of the documents"):
        resolved(general="auto")
    assert resolved(method="low-rank-npo", general="holdout").general == "holdout"
