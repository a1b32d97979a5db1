"""A study of which every run would be refused is refused itself, in the words of the command that would refuse them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from letheon import api
from letheon.cli.main import main
from letheon.data.rows import Row, write_rows
from letheon.errors import LetheonError
from letheon.settings import EvaluateSettings, UnlearnSettings
from letheon.studies.spec import StudySettings
from letheon.unlearning.populations import run_population
from running import events, short_run


@pytest.fixture(autouse=True)
def _without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the figures, which take longer to draw than these runs to train."""
    monkeypatch.setattr("letheon.studies.figures.save_study_figures", lambda record, folder: ())
    monkeypatch.setattr("letheon.studies.figures.study_svgs", lambda record: {})
    monkeypatch.setattr("letheon.report.page.figure_svgs", lambda run: {})


@pytest.fixture
def base(tmp_path: Path, rows: list[Row], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The settings that the runs of a small study share."""
    given = short_run(tmp_path, rows, model, tokenizer)
    return {
        **{name: value for name, value in given.items() if name not in ("out", "evaluate")},
        "epochs": 1,
        "keep": "last",
    }


def contradict(base: dict[str, Any]) -> dict[str, Any]:
    """Ask one question on both sides, with two answers."""
    question = Row("q", "Who keeps Vell?", "Mira", "Task1", "question")
    folder = Path(base["forget"]).parent
    write_rows([question], folder / "forget.jsonl")
    write_rows([replace(question, id="r", answer="Oren")], folder / "retain.jsonl")
    return base


def with_empty_tokenizer(base: dict[str, Any]) -> dict[str, Any]:
    """Name a folder as tokenizer that holds none."""
    folder = Path(base["forget"]).parent / "none"
    folder.mkdir()
    return {**base, "tokenizer": str(folder)}


def with_larger_tokenizer(base: dict[str, Any]) -> dict[str, Any]:
    """Name a tokenizer that has more tokens than the model."""
    tokenizer = AutoTokenizer.from_pretrained(base["model"])
    tokenizer.add_tokens([f"<new{number}>" for number in range(2000)])
    tokenizer.save_pretrained(Path(base["forget"]).parent / "larger")
    return {**base, "tokenizer": str(Path(base["forget"]).parent / "larger")}


def refused_by_unlearn(given: dict[str, Any], out: Path) -> str:
    with pytest.raises(LetheonError) as error:
        api.unlearn(UnlearnSettings.of({**given, "out": out}))
    return str(error.value)


@pytest.mark.parametrize(
    "spoil",
    [
        *(contradict, with_empty_tokenizer, with_larger_tokenizer),
        lambda base: {**base, "target_modules": ["nothing"]},
    ],
)
def test_what_unlearn_refuses_of_every_run_refuses_the_study(
    spoil: Callable[[dict[str, Any]], dict[str, Any]],
    base: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = spoil(base)
    said = refused_by_unlearn(given, tmp_path / "alone")
    monkeypatch.setattr("letheon.unlearning.run.load_model_of", None)
    monkeypatch.setattr("letheon.scoring.evaluating.load_model_of", None)
    study = {"base": given, "grid": {"gamma": [0.5, 1.0]}, "evaluate": {"max_new_tokens": 4}}
    with pytest.raises(LetheonError) as error:
        api.study(StudySettings.of(study), tmp_path / "study")
    assert (str(error.value), error.value.exit_code) == (said, 2)
    assert not (tmp_path / "study" / "failures").exists()
    assert not (tmp_path / "study" / "runs").exists()


@pytest.mark.parametrize("evaluate", [{"members": "retain"}, {"nonmembers": "retain"}, {"mmlu_limit": 3}])
def test_what_evaluate_refuses_of_every_run_refuses_the_study(
    evaluate: dict[str, Any], base: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("letheon.scoring.evaluating.load_model_of", None)
    given = {name: base["retain"] if value == "retain" else value for name, value in evaluate.items()}
    files = {name: base[name] for name in ("model", "forget", "retain")}
    with pytest.raises(LetheonError) as alone:
        api.evaluate(EvaluateSettings.of({**files, **given, "out": tmp_path / "alone"}))
    with pytest.raises(LetheonError) as error:
        api.study(StudySettings.of({"base": base, "evaluate": given}), tmp_path / "study")
    assert (str(error.value), error.value.exit_code) == (str(alone.value), 2)
    assert not (tmp_path / "study" / "runs").exists()


def test_what_is_wrong_with_some_runs_ends_these_alone(base: dict[str, Any], tmp_path: Path) -> None:
    entries = [{"target_modules": ["nothing"]}, {"gamma": 0.5}]
    report = api.study(StudySettings.of({"base": base, "list": entries, "evaluate": None}), tmp_path / "study")
    assert [run.state for run in report.record.runs] == ["failed", "finished"]
    assert report.exit_code == 1


def test_a_search_is_refused_only_if_no_choice_can_run(base: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    search = {"target_modules": {"choices": [["nothing"], ["v_proj"]]}}
    study = {"base": base, "search": search, "trials": 1, "objectives": ["interim.score"], "evaluate": None}
    assert len(api.study(StudySettings.of(study), tmp_path / "study").record.runs) == 1
    search["target_modules"]["choices"] = [["nothing"], ["nobody"]]
    with pytest.raises(LetheonError, match="nothing"):
        api.study(StudySettings.of(study), tmp_path / "other")


def test_a_finished_study_is_not_refused_for_what_runs_would_read(base: dict[str, Any], tmp_path: Path) -> None:
    study = StudySettings.of({"base": {**base, "cache_dir": str(tmp_path / "cache")}, "evaluate": None})
    assert api.study(study, tmp_path / "study").exit_code == 0
    for path in sorted((tmp_path / "cache").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    if (tmp_path / "cache").is_dir():
        (tmp_path / "cache").rmdir()
    (tmp_path / "cache").write_text("a file that no run could keep its reference in")
    assert api.study(study, tmp_path / "study").exit_code == 0


def test_the_command_ends_with_2(
    base: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"base": contradict(base), "evaluate": {}}))
    expected = refused_by_unlearn(base, tmp_path / "alone")
    arguments = ["study", tmp_path / "mine.yaml", "--out", tmp_path / "study"]
    monkeypatch.setattr("sys.argv", ["letheon", *map(str, arguments)])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    # A slow machine says before it what it is at.
    assert capsys.readouterr().err.splitlines()[-1] == f"letheon: error: {expected}"


def warnings_in(folder: Path) -> list[str]:
    return [event["message"] for event in events(folder, "note") if event["message"].startswith("WARNING: rank")]


def test_a_rank_above_the_width_is_in_the_log_of_the_run_that_has_it(base: dict[str, Any], tmp_path: Path) -> None:
    wide = UnlearnSettings.of({**base, "rank": 500, "out": tmp_path / "wide"})
    api.unlearn(wide.model_copy(update={"evaluate": False}))
    (said,) = warnings_in(tmp_path / "wide")
    assert "rank 500 is above" in said
    both = [UnlearnSettings.of({**base, "rank": rank, "out": tmp_path / f"r{rank}"}) for rank in (2, 400)]
    run_population(both)
    assert warnings_in(tmp_path / "r2") == []
    (said,) = warnings_in(tmp_path / "r400")
    assert "rank 400 is above" in said
