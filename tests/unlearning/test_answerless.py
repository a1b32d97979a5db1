"""Rows that are cut off before their answers: steps without an answer token, what is said of them, and what is refused.

With `--max-length 6` one forget row and one retain row of three have no answer token left.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from killing import difference, set_aside
from letheon import UnlearnSettings
from letheon.data.rows import Row, write_rows
from letheon.data.sequences import tokenise_all
from letheon.errors import DataError
from letheon.model.loading import load_model
from letheon.objective.catalogue import METHODS, get_method
from letheon.training import step
from letheon.training.tracking import Silent
from letheon.unlearning.answerless import Answerless
from letheon.unlearning.inputs import read_inputs
from letheon.unlearning.populations import run_population
from letheon.unlearning.prepare import prepare
from letheon.unlearning.problem import Problem
from letheon.unlearning.record import RunReport
from letheon.unlearning.resolve import resolve_settings
from letheon.unlearning.run import unlearn
from running import After, events, knowing_model, model_of, run, short_run, unseen_for

LENGTH = 6


@pytest.fixture
def given(tmp_path: Path, rows: list[Row], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    short = short_run(tmp_path, rows, knowing_model(tokenizer, rows), tokenizer)
    cut = {"max_length": LENGTH, "overlong": "truncate", "answerless": "skip", "batch_size": 1, "epochs": 2}
    return {**short, **cut, "method": "low-rank-npo", "learning_rate": 1e-3, "end_of_sequence": "none"}


@pytest.fixture
def answerless(rows: list[Row], tokenizer: PreTrainedTokenizerBase) -> tuple[list[str], list[str]]:
    """The ids of the forget and of the retain rows without an answer token."""
    sequences = tokenise_all(rows, tokenizer, template="joined", max_length=256)
    missing = [row.id for row, s in zip(rows, sequences, strict=True) if s.answer_start >= LENGTH]
    found = [i for i in missing if i.startswith("f")], [i for i in missing if i.startswith("r")]
    assert 0 < len(found[0]) < 3
    assert 0 < len(found[1]) < 3
    return found


def problem_of(given: dict[str, Any], **changed: Any) -> Problem:
    settings = resolve_settings(UnlearnSettings.of({**given, **changed}))
    loaded, inputs = load_model(settings.model), read_inputs(settings)
    method = get_method(settings.method)
    return prepare(loaded, inputs, settings, method=method, cache_dir=None, observer=Silent()).problem


def empty_steps(report: RunReport) -> list[dict[str, Any]]:
    return [line for line in events(report.folder, "step") if all(value is None for value in line["terms"].values())]


FAST = ("low-rank-npo", "idk-dpo", "rmu", "pdu", "npo-ties")
"""Methods of different kinds of terms; the others run with the slow tests."""


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in sorted(METHODS)]
)
def test_every_method_takes_a_step_without_answer_tokens(method: str, given: dict[str, Any]) -> None:
    keep = {"keep": "last"} if get_method(method).finish != "keep" else {}
    unseen = unseen_for(method, Path(given["out"]).parent)
    report = run(given, method=method, epochs=1, max_batch_tokens=16, **keep, **unseen)
    assert report.reason == "finished"
    assert all(line["loss"] is not None for line in events(report.folder, "step"))


@pytest.mark.parametrize(
    "changed",
    [
        {"store_lower": True, "layers": "1:2"},
        {"adapt": "weights", "method": "neko"},
        {"gradient_checkpointing": True},
        {"lora_dropout": 0.1},
        {"dora": True},
        {"dtype": "bfloat16"},
        {"schedule": "paired"},
    ],
)
def test_every_kind_of_run_takes_a_step_without_answer_tokens(changed: dict[str, Any], given: dict[str, Any]) -> None:
    report = run(given, **{"epochs": 1, **changed})
    assert report.reason == "finished"


@pytest.mark.parametrize("path", ["packed", "padded", "logits"])
def test_a_step_without_answer_tokens_leaves_no_gradient_on_any_path(path: Any, given: dict[str, Any]) -> None:
    problem = problem_of(given)
    problem = replace(problem, engine=replace(problem.engine, path=path))
    empty = [i for i, sequence in enumerate(problem.sequences) if not sequence.num_answer_tokens]
    with problem.engine.running():
        parts, num_tokens = step.accumulate(problem, empty, max_tokens=10_000)
    assert set(parts.values()) == {None}
    assert num_tokens == LENGTH * len(empty)
    assert all(parameter.grad is None for parameter in problem.adapted.parameters())


def test_a_step_without_answer_tokens_changes_nothing(given: dict[str, Any], answerless: tuple[list[str], ...]) -> None:
    report = run(given, weight_decay=0.5, checkpoint_steps=1, keep_checkpoints=100)
    assert report.num_steps == 2 * 6
    empty = empty_steps(report)
    assert len(empty) == 2 * sum(map(len, answerless))
    for line in empty:
        assert line["loss"] == line["gradient_norm"] == 0
        after, before = (report.folder / "checkpoints" / f"step-{line['step'] - back}" for back in (0, 1))
        for name in ("parameters.safetensors", "optimiser.safetensors"):
            if before.exists():
                assert (after / name).read_bytes() == (before / name).read_bytes()


def test_pieces_without_answer_tokens_add_up_to_the_whole_step(given: dict[str, Any]) -> None:
    found = []
    for max_tokens in (10_000, LENGTH):
        problem = problem_of(given)
        with problem.engine.running():
            parts, _ = step.accumulate(problem, range(6), max_tokens=max_tokens)
        gradients = [p.grad for p in problem.adapted.parameters() if p.grad is not None]
        found.append((parts, torch.cat([gradient.flatten() for gradient in gradients])))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-6)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-4, atol=1e-6)
    assert found[0][1].abs().max() > 0


@pytest.mark.parametrize("num_steps", [2, 5, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 3, 4, 6))])
def test_a_run_with_empty_steps_goes_on_to_the_same_bytes(num_steps: int, given: dict[str, Any]) -> None:
    run(given)
    whole = set_aside(given)

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unlearn(UnlearnSettings.of({**given, "checkpoint_minutes": 1e-9}), observer=After(num_steps, stop))
    run(given, resume=True)
    assert difference(whole, given["out"]) is None


def test_runs_of_a_population_take_empty_steps_as_they_do_alone(given: dict[str, Any], tmp_path: Path) -> None:
    runs = [{**given, "seed": seed, "gamma": gamma, "keep": "last"} for seed, gamma in ((0, 1.0), (1, 0.5))]
    alone = [run(one, out=tmp_path / f"alone-{i}") for i, one in enumerate(runs)]
    settings = [UnlearnSettings.of({**one, "out": tmp_path / f"member-{i}"}) for i, one in enumerate(runs)]
    together = run_population(settings)
    for one, other in zip(alone, together, strict=True):
        assert isinstance(other, RunReport)
        assert [line["step"] for line in empty_steps(one)] == [line["step"] for line in empty_steps(other)]
        for name, value in model_of(one).items():
            torch.testing.assert_close(model_of(other)[name], value, rtol=0, atol=1e-5)


def test_runs_that_all_have_an_empty_step_at_once(given: dict[str, Any], tmp_path: Path) -> None:
    settings = [UnlearnSettings.of({**given, "max_length": 2, "gamma": g, "out": tmp_path / f"{g}"}) for g in (0.5, 1)]
    for report in run_population(settings):
        assert isinstance(report, RunReport)
        assert len(empty_steps(report)) == report.num_steps == 12


# What is said and refused


def test_rows_are_listed_by_side_in_the_log_and_in_a_note(
    given: dict[str, Any], answerless: tuple[list[str], list[str]]
) -> None:
    report = run(given, epochs=1)
    (listed,) = events(report.folder, "answerless")
    assert (listed["forget"], listed["retain"]) == answerless
    notes = [line["message"] for line in events(report.folder, "note")]
    (said,) = [note for note in notes if "no answer token" in note]
    forget, retain = answerless
    assert said.endswith(f"not trained on: forget {', '.join(forget)}; retain {', '.join(retain)}")


@pytest.mark.parametrize("template", ["joined", "auto"])
def test_forget_rows_without_an_answer_are_refused_by_name(
    template: str, given: dict[str, Any], answerless: tuple[list[str], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    if template != "auto":
        monkeypatch.setattr("letheon.unlearning.run.load_model_of", None)  # it is said before the model is loaded
    num = len(answerless[0])
    expected = rf"{num} forget rows? ha(s|ve) no answer token among the first 6, .*: {', '.join(answerless[0])}; raise"
    with pytest.raises(DataError, match=expected):
        run(given, template=template, answerless="refuse")


def test_retain_rows_without_an_answer_are_listed_not_refused(given: dict[str, Any], rows: list[Row]) -> None:
    write_rows([replace(row, prompt="Q?") for row in rows[:3]], Path(given["forget"]))
    report = run(given, answerless="refuse", epochs=1)
    (listed,) = events(report.folder, "answerless")
    assert listed["forget"] == []
    assert listed["retain"]


def test_truncating_prompts_keeps_every_answer(given: dict[str, Any]) -> None:
    report = run(given, overlong="truncate-prompt", answerless="refuse", epochs=1)
    assert events(report.folder, "answerless") == []
    assert empty_steps(report) == []


def test_only_a_few_ids_are_written_out() -> None:
    found = Answerless(tuple(f"f{i}" for i in range(20)), (), 6)
    assert found.describe(so="not scored").endswith("f14, f15 and 4 more")


# Rows over the model's context


def long_rows(rows: list[Row], given: dict[str, Any], *, answer: bool) -> None:
    """Make the first forget and retain row longer than the model's context of 256 tokens, by answer or by prompt."""
    words = " ".join(f"word{i}" for i in range(200))
    for name, chosen in (("forget", rows[:3]), ("retain", rows[3:])):
        row = chosen[0]
        made = replace(row, answer=words) if answer else replace(row, prompt=f"{name} {words}")
        write_rows([made, *chosen[1:]], Path(given[name]))


@pytest.mark.parametrize(
    ("overlong", "template", "max_length", "architecture"),
    [
        ("truncate", "joined", 64, "olmo"),
        ("truncate", "auto", 2048, "gpt2"),
        ("truncate-prompt", "joined", 2048, "gpt2"),
        ("truncate-prompt", "auto", 64, "gpt2"),
        ("truncate-prompt", "auto", 2048, "olmo"),
    ],
)
def test_rows_over_the_context_are_truncated_where_that_was_asked(
    overlong: str, template: str, max_length: int, architecture: str, given: dict[str, Any], rows: list[Row],
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path,
) -> None:  # fmt: skip
    changed = {
        **given,
        **short_run(tmp_path, rows, knowing_model(tokenizer, rows, architecture=architecture), tokenizer),
    }
    long_rows(rows, changed, answer=True)
    changed |= {
        "overlong": overlong,
        "template": template,
        "max_length": max_length,
        "epochs": 1,
        "answerless": "refuse",
    }
    report = run(changed)
    assert report.reason == "finished"
    assert events(report.folder, "answerless") == []
    problem = problem_of({**changed, "template": "joined"})
    assert len(problem.sequences[0].input_ids) == min(256, max_length)
    assert len(problem.probes.answers[0].input_ids) == 256
    with pytest.raises(DataError, match="at most 256 fit"):
        problem_of({**changed, "template": "joined", "overlong": "refuse", "max_length": 256})


def test_a_row_whose_answer_lies_beyond_the_context_is_neither_trained_nor_scored(
    given: dict[str, Any], rows: list[Row]
) -> None:
    long_rows(rows, given, answer=False)
    given["max_length"] = 2048
    with pytest.raises(DataError, match=rf"1 forget row has no answer token among the first 256, .*: {rows[0].id};"):
        run(given, answerless="refuse")
    report = run(given)
    notes = [line["message"] for line in events(report.folder, "note")]
    assert any(note.endswith(f"are not scored: forget {rows[0].id}; retain {rows[3].id}") for note in notes)
    problem = problem_of(given)
    assert [row.id for row in problem.probes.rows] == [row.id for row in (*rows[1:3], *rows[4:])]
    assert problem.probes.num_forget_rows == 2
    # Its prompt is cut from the left instead, and the row is trained on and scored.
    problem = problem_of(given, overlong="truncate-prompt", answerless="refuse")
    assert len(problem.probes.rows) == 6
    assert problem.sequences[0].num_answer_tokens > 0
    assert len(problem.sequences[0].input_ids) <= 256


@pytest.mark.parametrize("method", ["alt-po", "idk-dpo", "llmu", "stat"])
def test_other_answers_to_rows_over_the_context(method: str, given: dict[str, Any], rows: list[Row]) -> None:
    long_rows(rows, given, answer=False)
    assert run(given, method=method, max_length=2048, epochs=1).reason == "finished"


def test_a_side_of_which_nothing_can_be_scored_is_refused(given: dict[str, Any], rows: list[Row]) -> None:
    words = " ".join(f"word{i}" for i in range(200))
    write_rows([replace(row, prompt=f"{row.id} {words}") for row in rows[3:]], Path(given["retain"]))
    with pytest.raises(DataError, match="the answers of all retain rows are beyond the model's context of 256"):
        run(given)
