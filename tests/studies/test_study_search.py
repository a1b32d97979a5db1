"""Searches: samplers, pruning, trials shared by processes, and what a killed one leaves."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from letheon import api
from letheon.data.rows import Row
from letheon.errors import MissingExtraError, SettingsError
from letheon.studies.grid import Configuration
from letheon.studies.records import RunRecord, StateScores
from letheon.studies.runner import PrunedError
from letheon.studies.spec import StudySettings, read_study
from letheon.training.judge import StateScore
from running import short_run

optuna = pytest.importorskip("optuna")

from sqlalchemy.exc import IntegrityError  # noqa: E402 - comes with the optional package

from letheon.studies.search import Search, open_search  # noqa: E402 - needs the optional package


def search_of(**changed: Any) -> StudySettings:
    values = {"name": "search", "search": {"gamma": {"low": 0, "high": 4}}, "trials": 30, "evaluate": {}}
    return StudySettings.of({**values, **changed})


def record(configuration: Configuration, seed: int, state: str = "finished", **scores: float) -> RunRecord:
    states = (StateScores(1, True, scores),) if scores else ()
    values = dict(configuration.values)
    label = configuration.label
    return RunRecord(label, label, "runs/x", label, values, seed, "study", state, states=states)  # type: ignore[arg-type]


def go(search: Search, run_seeds: Any) -> None:
    search.go_on(run_seeds, is_over=lambda: False, on_trial=lambda: None)


def test_tpe_finds_the_top_of_a_hill_and_its_trials_are_kept(tmp_path: Path) -> None:
    def hill(configuration: Configuration, _: Any) -> Sequence[RunRecord]:
        gamma = configuration.values["gamma"]
        return [record(configuration, 0, final=1 - (gamma - 3) ** 2)]

    search = open_search(search_of(), out=tmp_path)
    go(search, hill)
    trials = search.trials()
    assert len(trials) == 30
    best = max(trials, key=lambda trial: trial.runs[0].states[0].scores["final"])
    assert best.values["gamma"] == pytest.approx(3, abs=0.25)
    again = open_search(search_of(), out=tmp_path)
    assert again.trials() == trials
    go(again, hill)  # nothing is left to do
    assert len(again.trials()) == 30


def test_the_same_seed_gives_the_same_trials(tmp_path: Path) -> None:
    def values(folder: Path, seed: int) -> list[Any]:
        search = open_search(search_of(trials=8), out=folder, seed=seed)
        go(search, lambda configuration, _: [record(configuration, 0, final=configuration.values["gamma"])])
        return [trial.values for trial in search.trials()]

    first = values(tmp_path / "a", 1)
    assert values(tmp_path / "b", 1) == first
    assert values(tmp_path / "c", 2) != first


def test_several_objectives_give_a_front(tmp_path: Path) -> None:
    def trade(configuration: Configuration, _: Any) -> Sequence[RunRecord]:
        gamma = configuration.values["gamma"] / 4
        return [record(configuration, 0, forgotten=gamma, retained=1 - gamma**2)]

    study = search_of(objectives=["forgotten", "retained"], trials=12)
    search = open_search(study, out=tmp_path)
    go(search, trade)
    assert isinstance(search.found.sampler, optuna.samplers.NSGAIISampler)
    assert len(search.found.best_trials) == 12  # no point of this curve beats another


def test_pruning_ends_a_hopeless_run(tmp_path: Path) -> None:
    ended: list[float] = []
    reasons: list[str] = []

    def run(configuration: Configuration, on_score: Any) -> Sequence[RunRecord]:
        quality = configuration.values["gamma"] / 4
        try:
            for step in range(1, 9):
                on_score(StateScore(step, step, {"score": quality * step / 8}))
        except PrunedError as error:
            ended.append(quality)
            reasons.append(str(error))
            return [record(configuration, 0, "pruned")]
        return [record(configuration, 0, **{"interim.score": quality})]

    study = search_of(pruner="successive-halving", objectives=["interim.score"], evaluate=None, sampler="random")
    search = open_search(study, out=tmp_path)
    go(search, run)
    states = [trial.state for trial in search.trials()]
    assert all("interim score" in reason for reason in reasons)
    assert states.count("pruned") == len(ended) > 3
    assert states.count("complete") > 1
    kept = [trial.values["gamma"] / 4 for trial in search.trials() if trial.state == "complete"]
    assert max(kept) > max(ended)


def test_a_trial_without_a_score_fails_and_counts(tmp_path: Path) -> None:
    search = open_search(search_of(trials=3), out=tmp_path)
    go(search, lambda configuration, _: [record(configuration, 0, "diverged")])
    assert [trial.state for trial in search.trials()] == ["fail"] * 3


def test_a_killed_trial_is_taken_up_again_with_the_same_settings(tmp_path: Path) -> None:
    search = open_search(search_of(trials=2), out=tmp_path)

    def dies(configuration: Configuration, _: Any) -> Sequence[RunRecord]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go(search, dies)
    tried: list[float] = []

    def notes(configuration: Configuration, _: Any) -> Sequence[RunRecord]:
        tried.append(configuration.values["gamma"])
        return [record(configuration, 0, final=0.5)]

    first = search.found.get_trials()[0].params["gamma"]
    other = open_search(search_of(trials=2), out=tmp_path)
    # A trial whose process is gone without a word: nothing of that process was able to say so.
    lost = other.found.ask()
    lost.set_user_attr("worker", f"{socket.gethostname()}:{_dead_pid()}")
    lost.suggest_float("gamma", 0, 4)
    go(other, notes)
    assert first in tried
    assert lost.params["gamma"] in tried
    assert len(other.trials()) == 2
    assert {trial.state for trial in other.trials()} == {"complete"}


def _dead_pid() -> int:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return ended.pid


def test_a_process_that_is_forestalled_in_making_the_tables_tries_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts: list[str] = []

    class Forestalled(optuna.storages.RDBStorage):  # type: ignore[misc, name-defined]
        def __init__(self, url: str, **given: Any) -> None:
            attempts.append(url)
            if len(attempts) < 3:
                raise IntegrityError("CREATE TABLE", {}, Exception("duplicate key"))
            super().__init__(url, **given)

    monkeypatch.setattr(optuna.storages, "RDBStorage", Forestalled)
    monkeypatch.setattr("time.sleep", lambda _: None)
    url = f"sqlite:///{tmp_path / 'trials.db'}"
    assert open_search(search_of(), out=tmp_path, storage=url).trials() == []
    assert attempts == [url] * 3


def test_another_search_under_the_same_name_is_refused(tmp_path: Path) -> None:
    open_search(search_of(), out=tmp_path)
    with pytest.raises(SettingsError, match="with a different search"):
        open_search(search_of(search={"gamma": {"low": 0, "high": 5}}), out=tmp_path)
    with pytest.raises(SettingsError, match="storage: expected a database"):
        open_search(search_of(), out=tmp_path, storage="nosuch://x")


def test_choices_whole_numbers_and_lists(tmp_path: Path) -> None:
    study = search_of(
        search={
            "rank": {"low": 1, "high": 64, "log": True, "int": True},
            "target_modules": {"choices": [["q_proj", "v_proj"], "all-linear"]},
            "coefficients.margin": {"choices": [0.5]},
        },
        trials=5,
        sampler="random",
    )
    search = open_search(study, out=tmp_path)
    seen: list[Configuration] = []

    def run(configuration: Configuration, _: Any) -> Sequence[RunRecord]:
        seen.append(configuration)
        return [record(configuration, 0, final=0.5)]

    go(search, run)
    assert all(isinstance(found.settings["rank"], int) for found in seen)
    assert {found.settings["target_modules"] for found in seen} <= {"q_proj,v_proj", "all-linear"}
    assert all(found.settings["coefficients"] == {"margin": 0.5} for found in seen)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.delitem(sys.modules, "letheon.studies.search")
    with pytest.raises(MissingExtraError, match=r"letheon\[search\]"):
        __import__("letheon.studies.search")


@pytest.fixture
def file(tmp_path: Path, rows: list[Row], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Path:
    """A search over real runs of a small model."""
    given = short_run(tmp_path, rows, model, tokenizer)
    base = {name: value for name, value in given.items() if name not in ("out", "evaluate")}
    study = {
        "name": "shared",
        "base": {**base, "epochs": 2},
        "search": {"learning_rate": {"low": 1e-4, "high": 1e-1, "log": True}},
        "objectives": "interim.score",
        "trials": 4,
        "seeds": 1,
    }
    path = tmp_path / "shared.yaml"
    path.write_text(yaml.safe_dump(study))
    return path


def start(file: Path, out: Path, *arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "letheon", "study", str(file), "--out", str(out), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(processes: Sequence["subprocess.Popen[str]"]) -> None:
    for process in processes:
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said


@pytest.mark.slow
def test_a_search_over_real_runs_reports_its_best_first(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("letheon.studies.figures.save_study_figures", lambda record, folder: ())
    report = api.study(read_study(file), tmp_path / "out")
    assert len({run.identity for run in report.record.runs}) == 4
    table = (tmp_path / "out" / "tables" / "scores.csv").read_text().splitlines()
    means = [float(line.split(",")[-7]) for line in table[1:] if "interim.score" in line]
    assert means == sorted(means, reverse=True)


@pytest.mark.slow
def test_two_processes_share_the_trials_of_one_journal(file: Path, tmp_path: Path) -> None:
    """Both finish, four trials in all; each works in the same folder, so that both are in one study.json."""
    finish([start(file, tmp_path / "out"), start(file, tmp_path / "out")])
    trials = open_search(read_study(file), out=tmp_path / "out").trials()
    assert [trial.state for trial in trials] == ["complete"] * 4
    study = json.loads((tmp_path / "out" / "study.json").read_text())
    assert len(study["runs"]) == 4
    assert len(list((tmp_path / "out" / "runs").glob("*/adapter"))) == 4


@pytest.fixture
def database(tmp_path: Path) -> Iterator[str]:
    """A PostgreSQL of the test's own on a free port of this machine."""
    pytest.importorskip("psycopg", reason="psycopg, the driver of PostgreSQL, is not installed")
    found = shutil.which("initdb")
    if found is None:
        pytest.skip("PostgreSQL (initdb, postgres) is not installed")
    user = _unprivileged() if os.geteuid() == 0 else []
    folder = Path("/tmp") / f"letheon-postgres-{os.getpid()}"  # where an unprivileged user may go
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = None
    try:
        folder.mkdir()
        if user:
            shutil.chown(folder, user[2])
        make = [*user, found, "-D", str(folder / "data"), "-U", "letheon", "-A", "trust"]
        subprocess.run(make, check=True, capture_output=True, cwd="/")
        postgres = Path(os.path.realpath(found)).with_name("postgres")
        serve = [*user, str(postgres), "-D", str(folder / "data"), "-p", str(port), "-k", str(folder), "-F"]
        server = subprocess.Popen(serve, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/")
        _wait_for(port)
        yield f"postgresql+psycopg://letheon@127.0.0.1:{port}/postgres"
    finally:
        if server is not None:
            server.terminate()
            server.wait(timeout=60)
        shutil.rmtree(folder, ignore_errors=True)


def _unprivileged() -> list[str]:
    """PostgreSQL refuses to run as root."""
    import pwd

    runuser = shutil.which("runuser")
    try:
        name = pwd.getpwnam("postgres").pw_name
    except KeyError:
        name = "nobody"
    if runuser is None:
        pytest.skip("PostgreSQL does not run as root, and there is no runuser to become another user")
    return [runuser, "-u", name, "--"]


def _wait_for(port: int) -> None:
    for _ in range(200):
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)  # the server says nowhere else that it is ready
    pytest.fail("PostgreSQL did not begin to listen")


@pytest.mark.slow
def test_two_processes_share_the_trials_of_a_database(file: Path, tmp_path: Path, database: str) -> None:
    """As on two machines: each has a folder of its own, and knows of the other's runs through the database."""
    outs = [tmp_path / "one", tmp_path / "two"]
    finish([start(file, out, "--storage", database) for out in outs])
    trials = open_search(read_study(file), out=tmp_path, storage=database).trials()
    assert [trial.state for trial in trials] == ["complete"] * 4
    made = [{path.name for path in (out / "runs").iterdir()} for out in outs]
    assert len(made[0] | made[1]) == 4
    assert not made[0] & made[1]
    last = max(outs, key=lambda out: (out / "study.json").stat().st_mtime)
    assert len(json.loads((last / "study.json").read_text())["runs"]) == 4
