"""A run ends with the scores of its model before and after, which are those of `letheon evaluate`."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from transformers import PreTrainedTokenizerBase

from commands import finish, signalled, start
from letheon import api
from letheon.cli.main import cli
from letheon.data.rows import Row, write_rows
from letheon.errors import EvaluationError, SettingsError
from letheon.evaluation.registry import read_results
from letheon.evaluation.suites.lume.results import LumeResults
from letheon.model.loading import load_model, save_model
from letheon.purging.purge import purge
from letheon.scores.results import Results
from letheon.scoring.run import Side, UnlearnReport, evaluate_settings
from letheon.settings import UnlearnSettings
from letheon.storage.fingerprints import hash_checkpoint
from letheon.studies.spec import read_study
from letheon.training.tracking import Silent
from running import knowing_model, short_run

WHY_THIS_PRECISION = ".results.json.provenance.model.precision"
FILES = ["evaluation_results.jsonl", "predictions.jsonl", "results.json"]


@pytest.fixture
def given(tmp_path: Path, rows: list[Row], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """A run of 9 steps on a model that knows its rows; it is scored."""
    known = short_run(tmp_path, rows, knowing_model(tokenizer, rows), tokenizer)
    del known["evaluate"]
    return known


class Stages(Silent):
    """Keeps the stages and notes that it hears of."""

    def __init__(self) -> None:
        self.stages, self.notes = list[str](), list[str]()

    def stage(self, name: str, done: int, total: int) -> None:
        self.stages.append(name)

    def note(self, message: str) -> None:
        self.notes.append(message)

    def has_scored(self, side: str) -> bool:
        """Whether a model was asked."""
        return any(stage.startswith(f"scoring {side}") for stage in self.stages)


def unlearn(given: dict[str, Any], observer: Silent | None = None, **changed: Any) -> UnlearnReport:
    return api.unlearn(UnlearnSettings.of({**given, **changed}), observer=observer)


def invoke(given: dict[str, Any], *more: object) -> Result:
    config = Path(given["out"]).with_suffix(".yaml")
    config.write_text(yaml.safe_dump({name: str(v) if isinstance(v, Path) else v for name, v in given.items()}))
    return CliRunner().invoke(cli, ["unlearn", "--config", str(config), *map(str, more)])


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """The leaves of nested mappings by dotted names, of which a comparison shows those that differ."""
    if not isinstance(value, dict):
        return {name: value}
    return {place: leaf for key, inner in value.items() for place, leaf in flat(inner, f"{name}.{key}").items()}


def comparable(folder: Path) -> dict[str, Any]:
    """An evaluation's files without when and by which command it was made, and what only the run knows."""
    results = json.loads((folder / "results.json").read_text())
    for numbers in results["fluency"].values():
        del numbers["loss_before"]
    results["scores"] = [one for one in results["scores"] if not one["name"].endswith("loss_before")]
    del results["duration_s"], results["provenance"]["created_at"], results["provenance"]["command"]
    rest = {path.name: path.read_text() for path in folder.iterdir() if path.name != "results.json"}
    return flat({"results.json": results, **rest})


def stored_as(dtype: torch.dtype, given: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> None:
    model = load_model(given["model"]).model
    torch.nn.Module.to(model, dtype)
    shutil.rmtree(given["model"])
    save_model(model, tokenizer, Path(given["model"]))


def cached(given: dict[str, Any]) -> list[Path]:
    return sorted(Path(os.environ["LETHEON_CACHE"], "evaluations").glob("*"))


# The scores


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({}, id="adapter"),
        *(
            pytest.param(changed, id=name, marks=pytest.mark.slow)
            for name, changed in {
                "dora": {"target_modules": "all-linear", "dora": True},
                "weights": {"adapt": "weights", "learning_rate": 1e-3},
                "bfloat16": {"dtype": "bfloat16", "learning_rate": 3e-2},
                "widened": {"dtype": "widened", "learning_rate": 3e-2},
                "widened weights": {"dtype": "widened", "adapt": "weights", "learning_rate": 3e-3},
                "form found": {"template": "auto"},
            }.items()
        ),
    ],
)
def test_both_evaluations_are_those_of_evaluate(
    changed: dict[str, Any], given: dict[str, Any], tokenizer: PreTrainedTokenizerBase
) -> None:
    if "dtype" in changed:
        stored_as(torch.bfloat16, given, tokenizer)
    report = unlearn(given, **changed)
    settings = UnlearnSettings.of({**given, **changed})
    assert report.unscored is None
    sides: tuple[tuple[Side, Results | None], ...] = (("before", report.before), ("after", report.after))
    for side, results in sides:
        folder = report.folder / "evaluation" / side
        assert results == read_results(folder / "results.json")
        found = comparable(folder)
        api.evaluate(evaluate_settings(settings, side), replace=True)
        assert found == comparable(folder)
    assert report.before is not None
    assert report.after is not None
    losses = {side: numbers["loss_before"] for side, numbers in report.after.fluency.items()}
    assert losses == {side: numbers["loss_before"] for side, numbers in report.fluency.items()}
    assert report.before.scores != report.after.scores  # it did something


def test_documents_and_questions_are_asked_too(given: dict[str, Any], tmp_path: Path) -> None:
    for name in ("members", "nonmembers"):
        texts = (f"The {name} of the club number {i} keep bees in winter." for i in range(3))
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"document": text}) + "\n" for text in texts))
    report = unlearn(given, members=tmp_path / "members.jsonl", nonmembers=tmp_path / "nonmembers.jsonl")
    for results in (report.before, report.after):
        assert isinstance(results, LumeResults)
        assert results.mia is not None
        assert (results.mia.num_members, results.mia.num_nonmembers) == (3, 3)


def test_documents_are_checked_before_the_model_is_loaded(
    given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("letheon.unlearning.run.load_model_of", None)
    with pytest.raises(EvaluationError, match="needs both --members and --nonmembers"):
        unlearn(given, members=Path(given["forget"]))
    assert not Path(given["out"]).exists()


@pytest.mark.parametrize(("changed", "num_loaded"), [({}, 0), ({"adapt": "weights", "learning_rate": 1e-3}, 1)])
def test_the_model_in_memory_is_scored(
    changed: dict[str, Any], num_loaded: int, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = list[str]()

    def load(source: str, **more: Any) -> Any:
        loaded.append(source)
        return load_model(source, **more)

    monkeypatch.setattr("letheon.scoring.run.load_model", load)
    assert unlearn(given, **changed).after is not None
    assert loaded == [given["model"]] * num_loaded


# The cache


@pytest.mark.slow
def test_the_scores_before_are_taken_once_for_a_model_and_its_rows(given: dict[str, Any], tmp_path: Path) -> None:
    first, second = unlearn(given), Stages()
    elsewhere = str(shutil.copytree(given["model"], tmp_path / "copy"))
    again = unlearn(given, second, out=tmp_path / "again", model=elsewhere, seed=5, learning_rate=3e-3)
    assert not second.has_scored("before")
    assert second.has_scored("after")
    assert [path.is_dir() for path in cached(given)] == [True]
    assert any(str(cached(given)[0]) in note for note in second.notes)
    assert again.before is not None
    assert again.before.model == elsewhere
    assert again.before.provenance["model"]["source"] == elsewhere
    before = comparable(again.folder / "evaluation" / "before")
    api.evaluate(
        evaluate_settings(UnlearnSettings.of({**given, "out": again.folder, "model": elsewhere}), "before"),
        replace=True,
    )
    assert before == comparable(again.folder / "evaluation" / "before")
    assert first.before is not None
    assert first.before.scores == again.before.scores


@pytest.mark.parametrize("changed", ["rows", "weights", "form", "documents", "dtype", "versions"])
@pytest.mark.slow
def test_whatever_the_scores_depend_on_makes_them_be_taken_anew(
    changed: str,
    given: dict[str, Any],
    rows: list[Row],
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unlearn(given)
    more: dict[str, Any] = {"out": tmp_path / "again", "max_steps": 1, "learning_rate": 3e-2}
    if changed == "rows":
        write_rows(rows[3:5], Path(given["retain"]))
    elif changed == "weights":
        other = load_model(given["model"]).model
        with torch.no_grad():
            next(other.parameters()).mul_(1.01)
        save_model(other, tokenizer, tmp_path / "other")
        more["model"] = str(tmp_path / "other")
    elif changed == "form":
        more["template"] = "plain"
    elif changed == "documents":
        for name in ("members", "nonmembers"):
            (tmp_path / name).write_text("".join(f'{{"document": "{name} {i} of the club"}}\n' for i in range(2)))
            more[name] = (tmp_path / name).rename(tmp_path / f"{name}.jsonl")
    elif changed == "dtype":
        more |= {"dtype": "bfloat16", "learning_rate": 1e-1}
    else:
        monkeypatch.setattr("letheon.storage.provenance._version", lambda name: f"{name} of tomorrow")
    heard = Stages()
    assert unlearn(given, heard, **more).unscored is None
    assert heard.has_scored("before")
    assert len(cached(given)) == 2


@pytest.mark.parametrize("spoil", ["results.json", "predictions.jsonl"])
@pytest.mark.slow
def test_cached_scores_that_are_not_whole_are_taken_anew(spoil: str, given: dict[str, Any], tmp_path: Path) -> None:
    first = unlearn(given)
    path = cached(given)[0] / spoil
    path.write_text(path.read_text().replace('"forget"', '"retain"')[:-30])
    heard = Stages()
    again = unlearn(given, heard, out=tmp_path / "again")
    assert heard.has_scored("before")
    name = "predictions.jsonl"
    assert (cached(given)[0] / name).read_text() == (first.folder / "evaluation" / "before" / name).read_text()
    assert again.unscored is None


@pytest.mark.slow
def test_purge_removes_the_cached_scores_of_the_run_and_no_others(given: dict[str, Any], tmp_path: Path) -> None:
    folder = unlearn(given).folder
    ours = cached(given)[0]
    assert sorted(path.name for path in ours.iterdir()) == FILES
    assert oct(ours.stat().st_mode & 0o777) == "0o700"
    other = ours.with_name("0" * 32)
    shutil.copytree(ours, other)
    found = purge(folder, note=lambda _: None)
    assert ours in {trace.path for trace in found.traces}
    assert not ours.exists()
    assert other.is_dir()
    assert {trace.path.name for trace in purge(folder, note=lambda _: None).traces} == {"report.html"}  # written anew


@pytest.mark.slow
def test_purge_leaves_a_folder_that_holds_other_things(given: dict[str, Any]) -> None:
    folder = unlearn(given).folder
    (cached(given)[0] / "thesis.txt").write_text("not ours")
    purge(folder, note=lambda _: None)
    assert (cached(given)[0] / "thesis.txt").is_file()


# What is not scored


def test_without_evaluation_the_model_is_all_that_is_said(given: dict[str, Any]) -> None:
    done = invoke(given, "--no-evaluate")
    assert done.stdout.splitlines() == [str(Path(given["out"]) / "model")]
    assert not (Path(given["out"]) / "evaluation").exists()
    assert not (Path(given["out"]) / "report.html").exists()
    assert cached(given) == []


@pytest.mark.slow
def test_scoring_is_no_part_of_a_run(given: dict[str, Any], tmp_path: Path) -> None:
    scored, plain = unlearn(given), unlearn(given, out=tmp_path / "plain", evaluate=False)
    assert hash_checkpoint(scored.model) == hash_checkpoint(plain.model)
    names = [yaml.safe_load((one.folder / "run.yaml").read_text()).keys() for one in (scored, plain)]
    assert names[0] == names[1]
    assert not names[0] & {"evaluate", "members", "nonmembers", "mmlu", "mmlu_limit"}


def test_what_would_not_be_scored_is_not_asked_for(given: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="mmlu: has no effect without --evaluate"):
        unlearn(given, evaluate=False, mmlu=Path("mmlu"))


@pytest.mark.parametrize("name", ["evaluate", "members"])
def test_a_study_scores_its_runs_by_its_own_section(name: str, tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(yaml.safe_dump({"base": {"model": "m", "forget": "f", "retain": "r", name: "x"}}))
    with pytest.raises(SettingsError, match=f"base: '{name}' says how a single run is scored"):
        read_study(path)


def test_a_run_that_its_time_limit_ended_is_not_scored(given: dict[str, Any]) -> None:
    done = invoke({**given, "time_limit_s": 1e-3})
    assert done.exit_code == 0
    assert "not scored: the time limit left no time" in done.stderr
    assert done.stdout.splitlines()[-1].endswith("run/report.html")
    assert not (Path(given["out"]) / "evaluation").exists()


@pytest.mark.slow
def test_a_run_that_cannot_be_scored_is_whole_and_says_why(
    given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Results:
        raise EvaluationError("row f1: no room in the context")

    monkeypatch.setattr("letheon.scoring.inputs.evaluate_suite", fail)
    done = invoke(given)
    folder = Path(given["out"])
    assert done.exit_code == 1
    assert "not scored: row f1: no room in the context" in done.stderr
    assert "the same command with --resume scores it" in done.stderr
    assert (folder / "model" / "model.safetensors").is_file()
    assert (folder / "model" / "README.md").is_file()
    assert (folder / "report.html").is_file()


# Going on


@pytest.mark.parametrize("missing", [("before", "after"), ("after",)])
@pytest.mark.slow
def test_resume_scores_what_a_finished_run_lacks(missing: tuple[str, ...], given: dict[str, Any]) -> None:
    first = unlearn(given)
    hashes = hash_checkpoint(first.model)
    sides = {side: comparable(first.folder / "evaluation" / side) for side in ("before", "after")}
    for side in missing:
        shutil.rmtree(first.folder / "evaluation" / side)
    for path in cached(given):
        shutil.rmtree(path)
    heard = Stages()
    again = unlearn(given, heard, resume=True)
    assert "step" not in heard.stages
    assert [side for side in ("before", "after") if heard.has_scored(side)] == list(missing)
    assert (again.num_steps, hash_checkpoint(again.model)) == (first.num_steps, hashes)
    for side, scores in sides.items():
        found = comparable(again.folder / "evaluation" / side)
        assert {name for name in scores if found[name] != scores[name]} <= {WHY_THIS_PRECISION}


@pytest.mark.slow
@pytest.mark.parametrize("side", ["before", "after"])
def test_a_signal_while_scoring_leaves_the_run_whole_and_says_how_to_go_on(side: str, given: dict[str, Any]) -> None:
    config = Path(given["out"]).with_suffix(".yaml")
    config.write_text(yaml.safe_dump({name: str(v) if isinstance(v, Path) else v for name, v in given.items()}))
    code, _, err = signalled("unlearn", "--config", config, at=f"scoring {side}", number=signal.SIGTERM)
    folder = Path(given["out"])
    assert code == 143
    assert err.splitlines()[-1].endswith("--resume")
    hashes = hash_checkpoint(folder / "model")
    assert (folder / "model" / "README.md").is_file()
    assert not (folder / "evaluation" / side / "results.json").exists()
    code, out, err = finish(start("unlearn", "--config", config, "--resume"))
    assert code == 0, err
    assert hash_checkpoint(folder / "model") == hashes
    assert out.splitlines()[-1] == f"report  {folder / 'report.html'}"


# What is printed


@pytest.mark.slow
def test_the_end_of_a_run_is_told_in_about_ten_lines(given: dict[str, Any]) -> None:
    done = invoke(given)
    folder, lines = Path(given["out"]), [line for line in done.stdout.splitlines() if line.strip()]
    assert done.exit_code == 0
    assert len(lines) <= 10
    assert lines[0].split() == ["Score", "Better", "Before", "After"]
    assert lines[-3:] == [
        f"model   {folder / 'model'}",
        f"adapter {folder / 'adapter'}",
        f"report  {folder / 'report.html'}",
    ]
    aggregate = read_results(folder / "evaluation" / "after" / "results.json").scores.value("task_aggregate")
    assert any(line.split()[:2] == ["Task", "aggregate"] and f"{aggregate:.3f}" in line for line in lines)
    assert lines[-4].startswith("The model ")
