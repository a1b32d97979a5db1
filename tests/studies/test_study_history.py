"""A study's folder tells under which study, as it was read, each of its runs was begun."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from letheon import api
from letheon.cli.main import cli
from letheon.data.rows import Row, write_rows
from letheon.errors import SettingsError
from letheon.studies.history import begun_under, changes, describe_change, study_facts
from letheon.studies.live import LiveView, Quiet
from letheon.studies.records import StudyRecord, read_study_record
from letheon.studies.spec import StudySettings, read_study
from letheon.studies.study import StudyReport
from running import short_run


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


def study_of(base: dict[str, Any], gammas: Sequence[float] = (0.5, 1.0), **changed: Any) -> StudySettings:
    return StudySettings.of({"name": "s", "base": base, "grid": {"gamma": gammas}, "evaluate": None, **changed})


class Heard(Quiet):
    """Keeps what is said of the study as a whole."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


def go(study: StudySettings, out: Path) -> tuple[StudyReport, list[str]]:
    heard = Heard()
    return api.study(study, out, view=heard), heard.notes


def facts(record: StudyRecord, out: Path) -> dict[str, str]:
    return dict(study_facts(record, out))


def test_the_fingerprint_is_of_what_was_set(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("base: {model: m, epochs: 3}\ngrid: {gamma: [0.5, 1.0]}\n")
    first = read_study(path)
    path.write_text("# a comment\ngrid:\n  gamma: [0.5, 1.0]\nbase:\n  epochs: 3\n  model: m\ndeviation: sample\n")
    assert read_study(path).sha256 == first.sha256
    assert len(first.sha256) == 64
    others = [read_study(path, changes=[change]) for change in ("epochs=4", "seeds=2", "deviation=population")]
    assert len({first.sha256, *(one.sha256 for one in others)}) == 4


def test_changes_are_named_with_both_values() -> None:
    there, here = {"base": {"epochs": 3, "rank": 2}}, {"base": {"epochs": 4, "rank": 2}, "seeds": [0, 1]}
    assert changes(there, here) == ["base.epochs: 3 there, 4 here", "seeds: the default there, 0, 1 here"]
    assert changes(there, there) == []
    many = changes({}, {f"a{number}": number for number in range(20)})
    assert len(many) == 9
    assert many[-1] == "12 more"


@pytest.mark.slow
def test_a_study_that_has_grown_says_so_and_keeps_what_it_had(base: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "study"
    first, said = go(study_of(base), out)
    assert said == []
    one = study_of(base).sha256
    assert [run.study_sha256 for run in first.record.runs] == [one, one]
    assert json.loads((out / "study.json").read_text())["sha256"] == one
    assert json.loads((out / "studies" / f"{one}.json").read_text())["study"] == study_of(base).as_read()

    grown = study_of(base, (0.5, 1.0, 2.0))
    second, (said_of_change,) = go(grown, out)
    assert one[:12] in said_of_change
    assert grown.sha256[:12] in said_of_change
    assert "grid.gamma: 0.5, 1.0 there, 0.5, 1.0, 2.0 here" in said_of_change
    assert said_of_change.endswith("of 2 runs there 2 are this study's too")
    assert [run.study_sha256 for run in second.record.runs] == [one, one, grown.sha256]
    found = facts(second.record, out)
    assert found["this study"] == f"{grown.sha256}, under which 1 run was begun"
    assert found[f"study {one[:12]}"].startswith(f"{one}, under which 2 runs were begun; their settings are the same")
    page = (out / "study.html").read_text()
    assert one in page
    assert grown.sha256 in page
    assert go(grown, out)[1] == []
    assert read_study_record(out).runs == second.record.runs


@pytest.mark.slow
def test_runs_of_other_base_settings_are_never_mixed_in(base: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "study"
    first, _ = go(study_of(base), out)
    changed = study_of({**base, "learning_rate": 2e-2})
    second, (said,) = go(changed, out)
    assert "base.learning_rate: 0.01 there, 0.02 here" in said
    assert "of 2 runs there 0 are this study's too, the others stay in runs/ and are in none of its tables" in said
    assert {run.identity for run in first.record.runs}.isdisjoint(run.identity for run in second.record.runs)
    assert {run.study_sha256 for run in second.record.runs} == {changed.sha256}
    assert facts(second.record, out)["other runs"].startswith("2 in runs/")


@pytest.mark.slow
def test_files_that_have_changed_are_said_too(base: dict[str, Any], rows: list[Row], tmp_path: Path) -> None:
    out = tmp_path / "study"
    go(study_of(base), out)
    write_rows(rows[:2], Path(base["forget"]))
    report, (said,) = go(study_of(base), out)
    assert said.startswith(f"what the runs of study {study_of(base).sha256[:12]} read")
    assert "of 2 runs there 0 are this study's too" in said
    assert len(report.record.runs) == 2


def test_a_folder_of_an_earlier_version_has_no_fingerprints(base: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "study"
    report, _ = go(study_of(base, (0.5,)), out)
    data = json.loads((out / "study.json").read_text())
    del data["sha256"], data["runs"][0]["study_sha256"]
    (out / "study.json").write_text(json.dumps(data))
    for path in (out / "begun").iterdir():
        path.unlink()
    assert facts(read_study_record(out), out)["not recorded"] == "under which study 1 run was begun"
    assert begun_under(out, report.record.runs[0].identity) is None
    assert describe_change(study_of(base, (0.5,)), out, {report.record.runs[0].identity}) is None
    again, said = go(study_of(base, (0.5,)), out)
    assert said == []
    assert [run.study_sha256 for run in again.record.runs] == [None]


@pytest.mark.parametrize("change", ["base", "rows", "evaluate"])
def test_a_search_never_mixes_trials_of_other_settings_or_files(
    change: str, base: dict[str, Any], rows: list[Row], tmp_path: Path
) -> None:
    pytest.importorskip("optuna")
    search = {"gamma": {"low": 0.5, "high": 1.0}}
    values = {"name": "s", "base": base, "search": search, "trials": 1, "evaluate": {"max_new_tokens": 2}}
    values["objectives"] = ["interim.score"]
    out = tmp_path / "study"
    go(StudySettings.of(values), out)
    before = (out / "study.json").read_bytes()
    if change == "base":
        values["base"] = {**base, "learning_rate": 2e-2}
    elif change == "rows":
        write_rows(rows[:2], Path(base["forget"]))
    else:
        values["evaluate"] = {"max_new_tokens": 3}
    of = "evaluation" if change == "evaluate" else "runs"
    with pytest.raises(
        SettingsError, match=f"settings or files of the {of}: [0-9a-f]{{12}} there, [0-9a-f]{{12}} here"
    ):
        go(StudySettings.of({**values, "trials": 2}), out)
    assert (out / "study.json").read_bytes() == before


def test_the_live_view_prints_notes_without_their_control_characters() -> None:
    console = Console(width=100, record=True)
    LiveView("a study", console).note("name \x1b[31m [bold]x")
    assert console.export_text() == "name \\x1b[31m [bold]x\n"


@pytest.mark.slow
def test_the_command_line_says_what_has_changed(base: dict[str, Any], tmp_path: Path) -> None:
    file, out = tmp_path / "mine.yaml", tmp_path / "study"
    file.write_text(yaml.safe_dump({"base": base, "evaluate": None}))
    given = ["study", str(file), "--out", str(out)]
    first = CliRunner().invoke(cli, given, catch_exceptions=False)
    assert "there" not in first.stderr
    second = CliRunner().invoke(cli, [*given, "--set", "learning_rate=0.02"], catch_exceptions=False)
    assert second.exit_code == 0
    assert "base.learning_rate: 0.01 there, 0.02 here" in " ".join(second.stderr.split())
    only = CliRunner().invoke(cli, [*given, "--report-only"], catch_exceptions=False)
    assert "only name, deviation, compare, references, published are taken from it" in only.stderr
    shown = [*given, "--report-only", "--set", "learning_rate=0.02", "--set", "deviation=population"]
    assert "taken from it" not in CliRunner().invoke(cli, shown, catch_exceptions=False).stderr
