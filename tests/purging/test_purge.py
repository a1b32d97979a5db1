"""`letheon purge`: nothing that Letheon wrote of the forget rows is left, and nothing else is touched."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from safetensors.numpy import save_file
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from launching import TIMEOUT_S
from letheon.api import evaluate, study, unlearn
from letheon.cli.main import cli
from letheon.data.rows import Row
from letheon.errors import OutputError
from letheon.purging.purge import REASON_REMOVED, purge
from letheon.settings import EvaluateSettings, UnlearnSettings
from letheon.storage.locks import file_lock, folder_lock
from letheon.studies.records import read_study_record
from letheon.studies.spec import StudySettings
from running import events, short_run


def silent(_: str) -> None:
    pass


@pytest.fixture
def given(
    tmp_path: Path, rows: list[Row], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    return short_run(tmp_path, rows, model, tokenizer)


def whole_run(given: dict[str, Any]) -> Path:
    """A run with its scores and report; the folder."""
    unlearn(UnlearnSettings.of(given))
    folder = Path(given["out"])
    for name, model in (("before", given["model"]), ("after", str(folder / "model"))):
        scored = {"model": model, "forget": given["forget"], "retain": given["retain"], "max_new_tokens": 8}
        evaluate(EvaluateSettings.of({**scored, "out": folder / "evaluation" / name}))
    assert invoke("report", folder).exit_code == 0
    return folder


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments], catch_exceptions=False)


def texts_below(folder: Path) -> str:
    return "\n".join(
        path.read_text(encoding="utf-8", errors="replace")
        for path in folder.rglob("*")
        if path.is_file() and path.suffix not in (".safetensors",) and path.name != "tokenizer.json"
    )


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_no_text_of_a_forget_row_is_left_and_results_scores_and_hashes_stay(
    given: dict[str, Any], rows: list[Row]
) -> None:
    folder = whole_run(given)
    stores = list(Path(os.environ["LETHEON_CACHE"]).rglob("*.safetensors"))
    model = snapshot(folder / "model") | {f"a/{k}": v for k, v in snapshot(folder / "adapter").items()}
    assert all(row.answer in texts_below(folder) for row in rows[:3])
    assert len(stores) == 1

    before = snapshot(folder)
    said = invoke("purge", folder).output
    left = texts_below(folder)
    assert not any(text in left for row in rows[:3] for text in (row.prompt, row.answer, row.id))
    assert not stores[0].exists()
    assert not (folder / "checkpoints").exists()
    assert str(stores[0]) in said
    assert f"{given['forget']}: the rows to forget" in said
    assert f"{given['model']}: the model before unlearning" in said
    kept = snapshot(folder / "model") | {f"a/{k}": v for k, v in snapshot(folder / "adapter").items()}
    assert {k: v for k, v in kept.items() if k != "README.md"} == {k: v for k, v in model.items() if k != "README.md"}
    AutoModelForCausalLM.from_pretrained(folder / "model")

    after = snapshot(folder)
    for name in ("run.yaml", "provenance.json", "log.jsonl", "evaluation/after/results.json"):
        assert after[name] == before[name]
    assert b"Task aggregate" in after["report.html"]
    removed = json.loads(after["purge.json"])["purges"][0]["removed"]
    assert {Path(path).name for path in removed} >= {"checkpoints", "report.html", "predictions.jsonl"}


def test_a_dry_run_names_the_same_and_removes_nothing(given: dict[str, Any]) -> None:
    folder = unlearn(UnlearnSettings.of(given)).folder
    (folder / "report.html").write_text("rows")
    before = snapshot(folder.parent)
    said = invoke("purge", folder, "--dry-run").output
    assert snapshot(folder.parent) == before
    named = {line.removeprefix("would remove ").rpartition(" (")[0] for line in said.splitlines() if "would" in line}
    assert named == {str(trace.path) for trace in purge(folder, note=silent).traces}


@pytest.mark.slow
def test_a_store_named_in_two_ways_is_one(given: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = whole_run(given)
    path = folder / "provenance.json"
    provenance = json.loads(path.read_text())
    store = Path(provenance["reference_store"])
    monkeypatch.chdir(folder)
    path.write_text(json.dumps({**provenance, "reference_store": os.path.relpath(store)}))
    found = purge(folder, dry_run=True, note=silent)
    assert [trace.path.resolve() for trace in found.traces if trace.path.name == store.name] == [store.resolve()]


def test_purging_twice_finds_nothing_the_second_time(given: dict[str, Any]) -> None:
    unlearn(UnlearnSettings.of(given))
    folder = Path(given["out"])
    assert len(purge(folder, note=silent).traces) == 2
    again = purge(folder, note=silent)
    assert again.traces == ()
    assert "neither it nor the cache holds anything of the rows to forget" in invoke("purge", folder).output


def test_a_killed_run_is_purged_by_what_its_log_says(given: dict[str, Any]) -> None:
    unlearn(UnlearnSettings.of(given))
    folder = Path(given["out"])
    (folder / "provenance.json").unlink()
    (folder / ".letheon.model.x1.tmp").mkdir()
    (folder / "checkpoints" / ".letheon.step-9.x2.tmp").mkdir()
    holds = [trace.path.name for trace in purge(folder, note=silent).traces]
    assert ".letheon.model.x1.tmp" in holds
    assert any(name.endswith(".safetensors") for name in holds)
    assert not list(Path(os.environ["LETHEON_CACHE"]).rglob("*.safetensors"))


def test_all_runs_of_a_study_are_purged_and_results_named_alike_elsewhere_are_not(tmp_path: Path) -> None:
    for name in ("a", "b"):
        for part in ("checkpoints/step-1", "model/checkpoints"):
            (tmp_path / "study" / "runs" / name / part).mkdir(parents=True)
        (tmp_path / "study" / "runs" / name / "run.yaml").write_text("method: npo\n")
    (tmp_path / "study" / "study.json").write_text("{}")
    (tmp_path / "study" / "notes").mkdir()
    (tmp_path / "study" / "notes" / "predictions.jsonl").write_text("of someone else\n")
    found = purge(tmp_path / "study", note=silent)
    runs = tmp_path / "study" / "runs"
    assert [trace.path for trace in found.traces] == [runs / "a" / "checkpoints", runs / "b" / "checkpoints"]
    assert (runs / "a" / "model" / "checkpoints").is_dir()
    assert (tmp_path / "study" / "notes" / "predictions.jsonl").exists()


@pytest.mark.slow
def test_the_reasons_of_failed_runs_name_no_rows_any_more(
    given: dict[str, Any], rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("letheon.studies.figures.save_study_figures", lambda record, folder: ())
    base = {name: value for name, value in given.items() if name != "out"}
    settings = StudySettings.of({"base": {**base, "epochs": 2}, "grid": {"learning_rate": [1e-2, 1e30]}})
    before = study(settings, tmp_path / "study").record
    assert [run.state for run in before.runs] == ["finished", "diverged"]
    named = [row.id for row in rows if row.id in texts_below(tmp_path / "study")]
    assert named
    said = invoke("purge", tmp_path / "study", "--dry-run").output
    assert f"would replace the reasons of failed runs in {tmp_path / 'study' / 'study.json'}" in said
    assert [row.id for row in rows if row.id in texts_below(tmp_path / "study")] == named

    purge(tmp_path / "study", note=silent)
    assert not any(row.id in texts_below(tmp_path / "study") for row in rows)
    after = read_study_record(tmp_path / "study")
    assert [run.state for run in after.runs] == [run.state for run in before.runs]
    assert after.runs[1].reason == REASON_REMOVED
    assert REASON_REMOVED in (tmp_path / "study" / "study.md").read_text()
    assert [run.states for run in after.runs] == [run.states for run in before.runs]
    assert study(settings, tmp_path / "study").record.runs == after.runs
    assert not purge(tmp_path / "study", note=silent).reworded


def test_tables_that_cannot_be_written_anew_are_gone(tmp_path: Path) -> None:
    failed = {"state": "failed", "reason": "forget.jsonl:1: row f1qa0"}
    (tmp_path / "study.json").write_text(json.dumps({"runs": [failed, 3, {"state": "pruned", "reason": "no hope"}]}))
    (tmp_path / "study.md").write_text("row f1qa0")
    notes: list[str] = []
    purge(tmp_path, note=notes.append)
    assert "could not be written again" in notes[0]
    assert json.loads((tmp_path / "study.json").read_text())["runs"][2]["reason"] == "no hope"
    assert "f1qa0" not in texts_below(tmp_path)
    assert not (tmp_path / "study.md").exists()


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(OutputError, match="expected the folder of a run, a study, an evaluation or an audit"):
        purge(tmp_path, note=silent)
    assert (tmp_path / "checkpoints").is_dir()


def test_a_run_that_is_going_on_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("method: npo\n")
    (tmp_path / "checkpoints").mkdir()
    with folder_lock(tmp_path, note=silent), pytest.raises(OutputError, match="in use"):
        purge(tmp_path, note=silent)
    assert (tmp_path / "checkpoints").is_dir()


def test_links_are_removed_and_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "run").mkdir(parents=True)
    (outside / "step-1").write_text("precious")
    (outside / "run" / "run.yaml").write_text("{}")
    (outside / "run" / "predictions.jsonl").write_text("precious")
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.yaml").write_text("method: npo\n")
    (run / "checkpoints").symlink_to(outside)
    (run / "more").symlink_to(outside / "run")
    (run / "predictions.jsonl").symlink_to(outside / "step-1")
    purge(run, note=silent)
    assert (outside / "step-1").read_text() == "precious"
    assert (outside / "run" / "predictions.jsonl").read_text() == "precious"
    assert not (run / "checkpoints").is_symlink()


@pytest.mark.parametrize("name", ["precious.safetensors", "0" * 32 + ".safetensors"])
@pytest.mark.parametrize("folder", ["reference", "models"])
def test_a_forged_provenance_makes_nothing_else_disappear(tmp_path: Path, name: str, folder: str) -> None:
    import numpy as np

    precious = tmp_path / folder / name
    precious.parent.mkdir()
    save_file({"weight": np.zeros(2, dtype=np.float32)}, precious, metadata={"format": "pt"})
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.yaml").write_text(yaml.safe_dump({"cache_dir": str(tmp_path)}))
    (run / "provenance.json").write_text(json.dumps({"reference_store": str(precious)}))
    (run / "log.jsonl").write_text(json.dumps({"event": "start", "reference_store": f"../{folder}/{name}"}) + "\n")
    assert purge(run, note=silent).traces == ()
    assert precious.exists()


@pytest.mark.parametrize("content", ["", "{", "[" * 2000, "[1]", '{"reference_store": 5}', "\udcff"])
def test_broken_records_name_nothing_to_remove(tmp_path: Path, content: str) -> None:
    for name in ("run.yaml", "provenance.json", "log.jsonl"):
        (tmp_path / name).write_bytes(content.encode("utf-8", "surrogateescape"))
    assert purge(tmp_path, note=silent).traces == ()


# What lies elsewhere, and what has lost the files that tell of it


def command_of(given: dict[str, Any], *more: object) -> list[str]:
    """The command line of a run."""
    flags = {name: value for name, value in given.items() if name not in ("trackers", "evaluate")}
    pairs = [(f"--{name.replace('_', '-')}", str(value)) for name, value in flags.items()]
    return ["unlearn", *(part for pair in pairs for part in pair), "--trackers", "", "--no-evaluate", *map(str, more)]


def letheon(
    arguments: list[str], *, cwd: Path, cache: Path | None = None, kill_at_store: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own; with `kill_at_store` one that is killed while it writes a store."""
    dies = (
        "import os, letheon.engine.reference_cache as cache\n"
        "def save(tensors, path, **_):\n"
        "    open(path, 'wb').write(b'half a store')\n"
        "    os.kill(os.getpid(), 9)\n"
        "cache.save_file = save\n"
    )
    code = f"import sys\nfrom letheon.cli.main import main\n{dies if kill_at_store else ''}main()"
    environment = {**os.environ, "LETHEON_CACHE": str(cache)} if cache else dict(os.environ)
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_relative_cache_is_found_from_another_folder(
    given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert invoke(*command_of(given, "--cache-dir", "cache here")).exit_code == 0
    (given["out"] / "provenance.json").unlink()
    assert len(files_in(tmp_path / "cache here")) == 1
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("LETHEON_CACHE", str(tmp_path / "other"))
    said = invoke("purge", given["out"])
    assert said.exit_code == 0
    assert str(tmp_path / "cache here" / "reference") in said.output
    assert files_in(tmp_path / "cache here") == []


@pytest.mark.slow
def test_the_cache_of_a_killed_attempt_and_that_of_the_next_are_both_emptied(
    given: dict[str, Any], tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert letheon(command_of(given), cwd=tmp_path, cache=first, kill_at_store=True).returncode == -signal.SIGKILL
    assert [name for name in files_in(first) if name.startswith(".letheon.")]
    assert letheon(command_of(given, "--resume"), cwd=tmp_path, cache=second).returncode == 0
    assert len(files_in(second)) == 1
    assert letheon(["purge", str(given["out"])], cwd=tmp_path).returncode == 0
    assert files_in(first) == files_in(second) == []


@pytest.mark.slow
def test_a_run_killed_before_its_first_step_is_purged(given: dict[str, Any], tmp_path: Path) -> None:
    cache = tmp_path / "first"
    assert letheon(command_of(given), cwd=tmp_path, cache=cache, kill_at_store=True).returncode == -signal.SIGKILL
    assert not (given["out"] / "run.yaml").exists()
    said = invoke("purge", given["out"])
    assert said.exit_code == 0
    assert "a store that a killed process was writing" in said.output
    assert files_in(cache) == []


def test_a_store_that_another_process_is_making_is_left_and_said(given: dict[str, Any], tmp_path: Path) -> None:
    unlearn(UnlearnSettings.of(given))
    store = next(Path(os.environ["LETHEON_CACHE"]).rglob("*.safetensors"))
    with file_lock(store, note=silent, what="it"):
        said = invoke("purge", given["out"]).output
    assert store.exists()
    assert f"{store}: a reference store that is locked by another process" in said
    assert str(store) in invoke("purge", given["out"]).output
    assert not store.exists()


@pytest.mark.slow
def test_predictions_are_removed_when_the_scores_beside_them_are_gone(given: dict[str, Any], tmp_path: Path) -> None:
    folder = whole_run(given)
    for name in ("before", "after"):
        (folder / "evaluation" / name / "results.json").unlink()
    alone = tmp_path / "alone"
    shutil.copytree(folder / "evaluation" / "after", alone)
    for purged in (folder, alone):
        assert list(purged.rglob("predictions.jsonl"))
        assert invoke("purge", purged).exit_code == 0
        assert not list(purged.rglob("predictions.jsonl"))


def test_files_of_others_under_our_names_stay(given: dict[str, Any]) -> None:
    folder = unlearn(UnlearnSettings.of(given)).folder
    mine = folder / "notes"
    (mine / "checkpoints" / "step-1").mkdir(parents=True)
    for name in ("results.json", "predictions.jsonl", "report.html", ".x.tmp", ".y.old"):
        (mine / name).write_text('{"id": "mine"}\n')
    (folder / "checkpoints" / "mine.txt").write_text("mine")
    (folder / ".draft.tmp").write_text("mine")
    before = snapshot(mine)
    said = invoke("purge", folder).output
    assert snapshot(mine) == before
    assert (mine / "checkpoints" / "step-1").is_dir()
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["mine.txt"]
    assert (folder / ".draft.tmp").exists()
    assert f"{folder / 'checkpoints'}: holds files that are no checkpoints of a run" in said


def test_an_evaluation_in_another_folder_is_named(given: dict[str, Any], tmp_path: Path) -> None:
    folder = unlearn(UnlearnSettings.of(given)).folder
    scored = {"model": str(folder / "model"), "forget": given["forget"], "retain": given["retain"]}
    evaluate(EvaluateSettings.of({**scored, "max_new_tokens": 2, "out": tmp_path / "scores"}))
    assert f"{tmp_path / 'scores'}: an evaluation of the result" in invoke("purge", folder).output
    assert (tmp_path / "scores" / "predictions.jsonl").exists()
    assert invoke("purge", tmp_path / "scores").exit_code == 0
    assert not (tmp_path / "scores" / "predictions.jsonl").exists()


def test_a_note_in_a_log_is_reworded_by_its_mark_and_not_by_its_words(tmp_path: Path) -> None:
    notes: list[dict[str, Any]] = [
        {"event": "note", "message": "the loss is not finite, said the manual"},
        {"event": "note", "message": "row f1qa0 broke", "names_rows": True},
        {"event": "answerless", "forget": ["f1qa0", "f2qa0"], "retain": []},
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(note) + "\n" for note in notes))
    purge(tmp_path, note=silent)
    kept = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert kept[0] == notes[0]
    assert kept[1]["message"] == REASON_REMOVED
    assert kept[2] == {"event": "answerless", "forget": [REASON_REMOVED] * 2, "retain": []}
    assert not purge(tmp_path, note=silent).reworded


def test_rows_without_an_answer_token_are_named_in_the_log_until_it_is_purged(given: dict[str, Any]) -> None:
    settings = {**given, "max_length": 8, "overlong": "truncate", "answerless": "skip"}
    folder = unlearn(UnlearnSettings.of(settings)).folder
    (skipped,) = events(folder, "answerless")
    named = [*skipped["forget"], *skipped["retain"]]
    assert named
    purge(folder, note=silent)
    assert not any(row in texts_below(folder) for row in named)


def test_a_study_is_not_purged_while_one_of_its_runs_goes_on(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "a"
    (run / "checkpoints" / "step-1").mkdir(parents=True)
    (run / "run.yaml").write_text("method: npo\n")
    (tmp_path / "study.json").write_text("{}")
    with folder_lock(run, note=silent), pytest.raises(OutputError, match="in use"):
        purge(tmp_path, note=silent)
    assert (run / "checkpoints" / "step-1").is_dir()


def test_what_cannot_be_removed_is_said_and_the_rest_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run.yaml").write_text("method: npo\n")
    (tmp_path / "checkpoints" / "step-1").mkdir(parents=True)
    (tmp_path / "population.json").write_text("{}")

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("letheon.purging.purge.shutil.rmtree", refuse)
    with pytest.raises(OutputError, match=r"1 of 2 traces are removed; .*checkpoints: cannot be removed"):
        purge(tmp_path, note=silent)
    recorded = json.loads((tmp_path / "purge.json").read_text())["purges"][0]["removed"]
    assert recorded == [str(tmp_path / "population.json")]
