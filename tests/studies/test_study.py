"""Studies on a small model: what is run once, what goes on, what is recorded, what a file may say."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from rich.console import Console
from safetensors.torch import load_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from letheon import api
from letheon.cli.main import cli
from letheon.data.rows import Row
from letheon.errors import DataError, EvaluationError, OutputError, SettingsError
from letheon.evaluation.registry import read_results
from letheon.progress import Lines
from letheon.settings import UnlearnSettings
from letheon.studies.figures import save_study_figures
from letheon.studies.grid import configurations, label_of
from letheon.studies.live import LiveView, PlainView, Quiet
from letheon.studies.planned_runs import Hashes, planned_run, planned_runs
from letheon.studies.records import StudyRecord, read_study_record
from letheon.studies.runner import Jobs, PrunedError, Runner
from letheon.studies.scoring import Scorer
from letheon.studies.spec import StudySettings, read_study, study_path
from letheon.studies.states import RunState, checkpoint_of, states_of
from letheon.training.judge import StateScore
from letheon.unlearning.populations import run_population
from letheon.unlearning.run import unlearn
from running import run, short_run


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
        "epochs": 2,
        "keep": "last",
    }


def study_of(base: dict[str, Any], **changed: Any) -> StudySettings:
    values = {"name": "small", "base": base, "grid": {"gamma": [0.5, 1.0]}, "seeds": 2}
    return StudySettings.of({**values, "evaluate": {"max_new_tokens": 4}, **changed})


class Counted:
    """Counts the runs and evaluations of studies."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.runs: list[str] = []
        self.evaluations: list[str] = []
        alone, together, evaluate = api.unlearn, run_population, api.evaluate

        def one(settings: Any, **given: Any) -> Any:
            self.runs.append(settings.out.name)
            return alone(settings, **given)

        def many(runs: Sequence[Any], **given: Any) -> Any:
            self.runs += [settings.out.name for settings in runs]
            return together(runs, **given)

        def score(settings: Any, **given: Any) -> Any:
            self.evaluations.append(str(settings.out))
            return evaluate(settings, **given)

        monkeypatch.setattr(api, "unlearn", one)
        monkeypatch.setattr("letheon.api.run_population", many)
        monkeypatch.setattr(api, "evaluate", score)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    return Counted(monkeypatch)


@pytest.mark.slow
def test_scores_that_are_edited_or_of_another_run_are_taken_again(
    base: dict[str, Any], tmp_path: Path, counted: Counted
) -> None:
    out = tmp_path / "study"
    first = api.study(study_of(base, seeds=1), out)
    one, other = (out / run.folder / "evaluation" / "after" for run in first.record.runs)
    counted.evaluations.clear()
    api.study(study_of(base, seeds=1), out)
    assert counted.evaluations == []

    path = one / "results.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "final": -3.0, "task_aggregate": 0.99}))
    again = api.study(study_of(base, seeds=1), out)
    assert counted.evaluations == [str(one)]
    assert again.record.runs[0].states == first.record.runs[0].states

    for name in ("results.json", "request.json", "predictions.jsonl"):
        shutil.copy(one / name, other / name)
    mixed = api.study(study_of(base, seeds=1), out)
    assert counted.evaluations == [str(one), str(other)]
    assert mixed.record.runs[1].states == first.record.runs[1].states


def test_a_study_runs_everything_once_and_a_changed_one_only_what_is_new(
    base: dict[str, Any], tmp_path: Path, counted: Counted
) -> None:
    out = tmp_path / "study"
    first = api.study(study_of(base), out)
    assert [run.state for run in first.record.runs] == ["finished"] * 4
    assert len(set(counted.runs)) == len(counted.runs) == 4
    assert len(counted.evaluations) == 5  # the original model too
    for name in ("study.json", "study.md", "tables/scores.tex", "tables/runs.csv"):
        assert (out / name).is_file()
    result = first.record.runs[0].result
    assert result is not None
    official = read_results(out / first.record.runs[0].folder / "evaluation" / "after" / "results.json")
    assert result.scores["task_aggregate"] == official.scores.value("task_aggregate")
    assert not (out / first.record.runs[0].folder / "model").exists()

    (out / "study.md").unlink()
    assert api.write_report(out) == out / "study.md"
    assert (out / "study.md").is_file()

    again = api.study(study_of(base), out)
    assert (len(counted.runs), len(counted.evaluations)) == (4, 5)
    assert again.record.runs == first.record.runs

    more = api.study(study_of(base, grid={"gamma": [0.5, 1.0, 2.0]}, seeds=[0], name="other"), out)
    assert len(counted.runs) == 5
    assert counted.runs[-1].startswith("gamma=2.0") or "gamma=2" in counted.runs[-1]
    assert [run.seed for run in more.record.runs] == [0, 0, 0]

    # Another way of scoring needs no training, though the merged models are gone.
    api.study(study_of(base, evaluate={"max_new_tokens": 5}, seeds=[0]), out)
    assert len(counted.runs) == 5
    assert len(counted.evaluations) == 6 + 3


@pytest.mark.slow
def test_a_study_scores_epochs_of_one_run(
    base: dict[str, Any], tmp_path: Path, counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("letheon.studies.figures.save_study_figures", save_study_figures)
    study = study_of(base, grid={}, seeds=1, evaluate={"max_new_tokens": 4, "epochs": [1, 2]}, keep_models=True)
    report = api.study(study, tmp_path / "study")
    (one,) = report.record.runs
    assert [(state.epoch, state.is_result) for state in one.states] == [(1.0, False), (2.0, True)]
    assert len(counted.evaluations) == 3
    folder = tmp_path / "study" / one.folder
    assert (folder / "evaluation" / "epoch-1" / "results.json").is_file()
    assert not list(folder.glob(".letheon*"))
    assert (tmp_path / "study" / "figures" / "epochs.svg").is_file()
    assert next(iter(report.record.original.values())).epoch == 0


def test_a_state_equals_the_model_that_the_run_left_then(base: dict[str, Any], tmp_path: Path) -> None:
    short = run({**base, "out": tmp_path / "short"}, epochs=1)
    long = run({**base, "out": tmp_path / "long"}, epochs=2, score_at=(1, 2))
    states, absent = states_of(long.folder, epochs=(1.0, 2.0, 1.5))
    assert absent == [1.5]
    with checkpoint_of(long.folder, states[0]) as folder:
        made, left = load_file(folder / "model.safetensors"), load_file(short.model / "model.safetensors")
    assert all((made[name] == value).all() for name, value in left.items())
    assert not folder.exists()
    with checkpoint_of(long.folder, states[1]) as folder:
        assert folder == long.model


def test_a_diverged_run_is_recorded_and_not_tried_again(base: dict[str, Any], tmp_path: Path, counted: Counted) -> None:
    out = tmp_path / "study"
    study = study_of(base, grid={"learning_rate": [1e-2, 1e30]}, seeds=1)
    report = api.study(study, out)
    assert [run.state for run in report.record.runs] == ["finished", "diverged"]
    assert "became NaN or infinite" in report.record.runs[1].reason
    assert "1 diverged" in (out / "study.md").read_text()
    num_runs = len(counted.runs)
    api.study(study, out)
    assert len(counted.runs) == num_runs
    api.study(study, out, retry=True)
    assert len(counted.runs) == num_runs + 1


@pytest.mark.slow
def test_a_killed_study_goes_on(base: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second evaluation dies; what was trained is not trained again, what was scored not scored again."""
    evaluate, num_calls = api.evaluate, 0

    def dies(settings: Any, **given: Any) -> Any:
        nonlocal num_calls
        num_calls += 1
        if num_calls == 2:
            raise KeyboardInterrupt
        return evaluate(settings, **given)

    monkeypatch.setattr(api, "evaluate", dies)
    out = tmp_path / "study"
    study = study_of(base, evaluate={"max_new_tokens": 4, "original": False}, grid={}, seeds=3)
    with pytest.raises(KeyboardInterrupt):
        api.study(study, out)
    counted = Counted(monkeypatch)
    report = api.study(study, out)
    assert [run.state for run in report.record.runs] == ["finished"] * 3
    assert counted.runs == []
    assert len(counted.evaluations) == 2


def test_a_run_is_pruned_where_it_is_scored_and_stays_so(base: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "study"
    study, hashes = study_of({**base, "checkpoint_epochs": 1}, grid={}, evaluate=None), Hashes(out / "inputs.json")
    run = planned_run(study, configurations(study)[0], 0, out=out, hashes=hashes)
    jobs = Jobs(lambda settings, observer: unlearn(settings, observer=observer), lambda *_: [], lambda _: [])
    runner = Runner(out, jobs, Scorer(study, hashes, api.evaluate), Quiet())
    heard: list[float] = []

    def gives_up(score: StateScore) -> None:
        heard.append(score.epoch)
        raise PrunedError("no hope")

    for _ in range(2):
        record = runner.run_one(run, on_score=gives_up)
        assert (record.state, record.reason) == ("pruned", "no hope")
    assert heard == [1.0]


def test_a_run_that_another_process_is_at_is_left_to_it(base: dict[str, Any], tmp_path: Path) -> None:
    from filelock import FileLock

    out = tmp_path / "study"
    study = study_of(base, grid={}, evaluate=None)
    run = planned_run(study, configurations(study)[0], 0, out=out, hashes=Hashes(out / "inputs.json"))
    (out / "locks").mkdir(parents=True)
    (out / "runs").mkdir()
    with FileLock(out / "locks" / f"{run.identity}.lock"):
        report = api.study(study, out)
    assert report.num_elsewhere == 1
    assert sorted(run.state for run in report.record.runs) == ["elsewhere", "finished"]


def test_baselines_have_their_own_recipe_and_the_studys_rows(base: dict[str, Any]) -> None:
    study = study_of({**base, "learning_rate": 0.5}, baselines={"GA": {"recipe": "ga-tofu", "epochs": 3}})
    last = configurations(study)[-1]
    assert (last.label, last.role, last.settings["method"], last.settings["epochs"]) == ("GA", "baseline", "ga", 3)
    assert last.settings["learning_rate"] == 1e-5
    assert last.settings["forget"] == base["forget"]


def test_rows_are_scored_as_the_run_read_them(base: dict[str, Any], tmp_path: Path) -> None:
    read = {"fields": {"messages": "dialog"}, "turns": "every"}
    run = UnlearnSettings.of({**base, **read, "out": tmp_path / "run"})
    scored = study_of(base).evaluation(run, model="m", out=tmp_path / "scores")
    assert (scored.fields, scored.turns) == ({"messages": "dialog"}, "every")


def test_a_grid_is_every_combination_and_a_list_is_itself(base: dict[str, Any]) -> None:
    study = study_of(base, grid={"rank": [1, 2]}, list=[{"gamma": 1, "delta": 0}, {"name": "KL alone", "delta": 1}])
    labels = [configuration.label for configuration in configurations(study)]
    assert labels == ["gamma=1, delta=0, rank=1", "gamma=1, delta=0, rank=2", "KL alone, rank=1", "KL alone, rank=2"]
    assert label_of({"coefficients.margin": 0.25, "target_modules": ["q_proj", "v_proj"]}) == (
        "margin=0.25, target_modules=q_proj+v_proj"
    )


def test_the_identity_of_a_run_is_what_it_does(base: dict[str, Any], tmp_path: Path) -> None:
    hashes = Hashes(tmp_path / "inputs.json")

    def identity(**changed: Any) -> str:
        study = study_of({**base, **changed}, grid={})
        return planned_run(study, configurations(study)[0], 0, out=tmp_path / "o", hashes=hashes).identity

    first = identity()
    assert identity(trackers="tensorboard") == first
    assert identity(rank=5) == first  # the default, spelled out
    assert identity(rank=6) != first
    assert identity(compile=False) == first  # off in a file of an earlier version
    assert identity(epochs=20, learning_rate="auto") != identity(learning_rate="auto")  # of which one ends by itself
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(Path(base["forget"]).read_bytes())
    assert identity(forget=str(copy)) == first
    copy.write_text(copy.read_text().replace("Harrow", "Yarrow"))
    assert identity(forget=str(copy)) != first


def test_hashes_are_kept_until_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "weights"
    file.write_text("one")
    first = Hashes(tmp_path / "inputs.json").of(file)
    monkeypatch.setattr("letheon.studies.planned_runs.hash_file", lambda path: "read again")
    assert Hashes(tmp_path / "inputs.json").of(file) == first
    file.write_text("changed")
    assert Hashes(tmp_path / "inputs.json").of(file) == "read again"
    assert Hashes(tmp_path / "inputs.json").of("hub:owner/name@split") == "hub:owner/name@split"


def bad(tmp_path: Path, text: str, *, changes: Sequence[str] = ()) -> str:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError) as caught:
        read_study(path, changes=changes)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gird: {gamma: [1]}", "did you mean 'grid'"),
        ("grid: {gama: [1]}", "did you mean 'gamma'"),
        ("grid: {seed: [1, 2]}", "is set by the study ("),
        ("grid: {gamma: []}", "grid"),
        ("base: {epohcs: 3}", "did you mean 'epochs'"),
        ("base: {compile: true}", "compile: this setting of earlier versions has been removed"),
        ("list: [{compile: true}]", "compile: this setting of earlier versions has been removed"),
        ("grid: {compile: [false, true]}", "compile: this setting of earlier versions has been removed"),
        ("search: {compile: {choices: [true]}}\nevaluate: {}", "compile: this setting of earlier versions has been"),
        ("evaluate: {mmul: x}", "did you mean 'mmlu'"),
        ("evaluate: {epochs: [0]}", "above 0"),
        ("search: {gamma: {low: 0, high: 1}}\ngrid: {rank: [1]}\nevaluate: {}", "got both"),
        ("search: {gamma: {low: 0}}\nevaluate: {}", "either choices, or low and high"),
        ("search: {gamma: {low: 2, high: 1}}\nevaluate: {}", "low below high"),
        ("search: {gamma: {low: 0, high: 1, log: true}}\nevaluate: {}", "above 0"),
        ("search: {rank: {low: 1, high: 2.5, int: true}}\nevaluate: {}", "whole numbers"),
        ("search: {gamma: {low: 0, high: 1}}", "need an `evaluate` section"),
        ("objectives: [finale]", "did you mean 'final'"),
        ("objectives: [final, retained]\npruner: hyperband", "one objective only"),
        ("published: {theirs: {task_score: 1}}", "published.theirs"),
        ("seeds: 0", "seeds"),
        ("seeds: [-1]", "seeds"),
    ],
)
def test_what_is_wrong_with_a_study_is_said_with_the_nearest_name(tmp_path: Path, text: str, said: str) -> None:
    message = bad(tmp_path, text)
    assert said in message
    assert "bad.yaml" in message


def test_changes_from_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("base: {model: official, epochs: 20}\nseeds: 5\n")
    changes = ["model=other/folder", "learning-rate=0.001", "evaluate.epochs=[1, 2]", "seeds=2", "fields={prompt: a}"]
    study = read_study(path, changes=changes)
    assert study.base == {
        "model": "other/folder",
        "epochs": 20,
        "learning_rate": 1e-3,
        "fields": {"prompt": "a"},
    }
    assert (study.epochs, study.seeds, study.name) == ((1.0, 2.0), (0, 1), "s")
    assert "NAME=VALUE" in bad(tmp_path, "{}", changes=["seeds"])


def test_two_configurations_that_are_one_are_refused(base: dict[str, Any], tmp_path: Path) -> None:
    study = study_of(base, grid={}, list=[{"rank": 5}, {"name": "default"}])
    with pytest.raises(SettingsError, match="have the same settings"):
        planned_runs(study, configurations(study), out=tmp_path, hashes=Hashes(tmp_path / "inputs.json"))
    with pytest.raises(SettingsError, match="have the name 'a'"):
        configurations(study_of(base, grid={}, list=[{"name": "a"}, {"name": "a", "rank": 2}]))


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({}, (1.0, 30.0)),  # a run that finds its own end
        ({"epochs": 20}, (1.0,)),
        ({"learning_rate": 1e-3}, (1.0,)),
        ({"learning_rate": 1e-3, "epochs": 70}, (1.0, 30.0, 70.0)),
    ],
)
def test_states_are_kept_at_the_epochs_that_a_run_may_reach(
    base: dict[str, Any], tmp_path: Path, given: dict[str, Any], kept: tuple[float, ...]
) -> None:
    shared = {name: value for name, value in base.items() if name not in ("epochs", "learning_rate")}
    study = study_of({**shared, **given}, grid={}, seeds=1, evaluate={"epochs": [1, 30, 70]})
    (planned,) = planned_runs(study, configurations(study), out=tmp_path, hashes=Hashes(tmp_path / "inputs.json"))
    assert planned.settings.score_at == kept


def test_what_stops_every_run_is_said_before_the_first(base: dict[str, Any], tmp_path: Path, counted: Counted) -> None:
    with pytest.raises(DataError, match="no such file"):
        api.study(study_of({**base, "forget": str(tmp_path / "gone.jsonl")}), tmp_path / "a")
    with pytest.raises(DataError, match=r"evaluate\.members"):
        api.study(study_of(base, evaluate={"members": "gone", "nonmembers": "gone"}), tmp_path / "a")
    with pytest.raises(SettingsError, match="compare"):
        api.study(study_of(base, compare={"gamma": 7}), tmp_path / "a")
    with pytest.raises(SettingsError, match=r"evaluate\.epochs: method 'task-vector'"):
        api.study(study_of(base, grid={}, list=[{"method": "task-vector"}], evaluate={"epochs": [1]}), tmp_path / "a")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    with pytest.raises(OutputError, match="do not belong to a study"):
        api.study(study_of(base), tmp_path / "full")
    assert counted.runs == []


def test_the_record_survives_a_round_trip_and_its_errors_say_what_to_do(base: dict[str, Any], tmp_path: Path) -> None:
    report = api.study(study_of(base, grid={}, evaluate=None, seeds=1), tmp_path / "s")
    assert read_study_record(tmp_path / "s") == report.record
    with pytest.raises(EvaluationError, match="folder of a study"):
        read_study_record(tmp_path)
    (tmp_path / "s" / "study.json").write_text(json.dumps({"schema": "letheon.study/1", "study": {}, "runs": 3}))
    with pytest.raises(EvaluationError, match="does not follow"):
        read_study_record(tmp_path / "s")
    (tmp_path / "s" / "study.json").write_text("{")
    with pytest.raises(EvaluationError, match="expected JSON"):
        read_study_record(tmp_path / "s")


@pytest.mark.slow
def test_the_command_line_runs_prints_and_reports_again(base: dict[str, Any], tmp_path: Path) -> None:
    file, out = tmp_path / "mine.yaml", tmp_path / "study"
    file.write_text(yaml.safe_dump({"base": {**base, "rank": 3}, "grid": {"gamma": [0.5, 1]}, "evaluate": None}))
    given = ["study", str(file), "--out", str(out), "--set", "epochs=1", "--set", "seeds=2"]
    result = CliRunner().invoke(cli, given, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "gamma=0.5" in result.output
    assert "finished" in result.output
    (out / "study.md").unlink()
    again = CliRunner().invoke(cli, ["study", "--out", str(out), "--report-only"], catch_exceptions=False)
    assert again.exit_code == 0, again.output
    assert (out / "study.md").is_file()
    named = ["study", str(file), "--out", str(out), "--report-only", "--set", "deviation=population"]
    assert "population" in CliRunner().invoke(cli, named, catch_exceptions=False).output


@pytest.mark.parametrize("name", ["table1", "table2", "table3", "figure2", "figure3"])
def test_the_papers_studies_are_whole(name: str, base: dict[str, Any], tmp_path: Path) -> None:
    """Each is checked as if it were run, on a small model in place of the official one."""
    changes = [f"{key}={base[key]}" for key in ("model", "forget", "retain")]
    changes += [f"evaluate.{key}={base[key]}" for key in ("forget", "retain")] + ["tokenizer=null"]
    study = read_study(study_path(name), changes=changes)
    runs = planned_runs(study, configurations(study), out=tmp_path, hashes=Hashes(tmp_path / "inputs.json"))
    counts = {"table1": 20, "table2": 70, "table3": 30, "figure2": 20, "figure3": 30}
    assert len(runs) == counts[name]
    first = runs[0].settings
    assert (first.beta, first.batch_size, first.learning_rate, first.epochs, first.alpha) == (0.5, 4, 1e-4, 20, 5)
    assert (first.npo, first.kl, first.keep, first.optimiser) == (
        "token",
        "forward",
        "last",
        "adamw" if name in ("table1", "figure2") else "adam",
    )
    assert study.epochs[-1:] == (() if name in ("table2", "table3") else (20.0,))
    assert study.deviation == "population"


def test_an_unknown_study_is_named() -> None:
    with pytest.raises(SettingsError, match="did you mean 'table1'"):
        study_path("tabel1")


def test_the_live_view_keeps_to_the_screen_and_shows_who_is_at_work() -> None:
    console = Console(width=100, height=12, force_terminal=True, record=True)
    view = LiveView("a study", console)
    for number in range(40):
        view.show(f"run {number}", "waiting")
    view.show("run 30", "running", "epoch 1: \x1b[31mred")
    view.progress("run 30", 5, 10)
    console.print(view.render())
    shown = console.export_text()
    assert "run 30" in shown
    assert "5/10" in shown
    assert "40 runs: 39 waiting, 1 running" in shown
    assert "run 0 " not in shown
    assert "\\x1b[31mred" in shown
    assert len(shown.splitlines()) <= 12


def test_the_live_table_shows_what_a_run_is_at_beside_its_steps() -> None:
    console = Console(width=80, height=20, record=True)
    view = LiveView("a study", console)
    view.show("a run", "running")
    for stage, shown in (("reference pass", "reference pass 3/9"), ("step", "3/9"), ("generation", "generation 3/9")):
        view.progress("a run", 3, 9, stage=stage)
        console.print(view.render())
        line = next(line for line in console.export_text().splitlines() if line.startswith("a run"))
        assert shown in line
        assert ("━" in line) == (stage != "reference pass")
    view.show("a run", "finished", "final 0.5")
    console.print(view.render())
    assert "generation" not in console.export_text()


def test_a_study_hears_how_far_runs_and_scorings_are(base: dict[str, Any], tmp_path: Path) -> None:
    heard: dict[str, set[str]] = {}

    class Listening(Quiet):
        def progress(self, name: str, done: int, total: int, *, stage: str = "step") -> None:
            assert 0 <= done <= total
            heard.setdefault(name, set()).add(stage)

    api.study(study_of({**base, "template": "auto"}, grid={}, seeds=1), tmp_path / "s", view=Listening())
    expected = {"loading the model", "reference pass", "step", "scoring", "writing the model", "generation"}
    expected |= {"finding the form of the rows"}
    (run,) = heard.keys() - {"original model"}
    assert heard[run] >= expected
    assert "generation" in heard["original model"]


def test_plain_lines_are_said_once() -> None:
    console = Console(width=80, record=True)
    view = PlainView(Lines(console, "a study", says_first=False, clock=lambda: 0.0))
    for _ in range(2):
        view.show("a run", "waiting")
        view.show("a run", "finished", "final 0.5")
        view.progress("a run", 1, 2)
    assert console.export_text() == "a run: finished: final 0.5\n"


def test_a_study_in_a_log_is_never_silent_for_longer_than_half_a_minute() -> None:
    console, now = Console(width=80, record=True), [0.0]
    view = PlainView(Lines(console, "a study", says_first=False, clock=lambda: now[0]))
    view.show("a run", "running")
    for step in range(1, 5):
        now[0] = 10.0 * step
        view.progress("a run", step, 8)
    now[0] = 45.0
    view.show("a run", "scoring")
    for seconds in range(46, 110):
        now[0] = float(seconds)
        view.lines.beat()
    assert console.export_text().splitlines() == [
        "a run: running",
        "a run: step 3/8, 50 s left",
        "a run: scoring",
        "a run: scoring, for 30 s",
        "a run: scoring, for 60 s",
    ]


def test_empty_states() -> None:
    assert StudyRecord(StudySettings.of({})).runs == ()
    assert RunState(1, 0.5, False, {}).epoch == 0.5
