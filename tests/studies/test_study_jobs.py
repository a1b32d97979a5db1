"""Runs of a study one by one and side by side: ids, the list of what is to do, processes at once, processes killed."""

import hashlib
import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from safetensors.torch import load_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from commands import finish, signalled, start
from letheon import api
from letheon.cli.main import cli
from letheon.data.rows import Row
from letheon.errors import DivergenceError, SettingsError
from letheon.storage import mounts
from letheon.studies.side_by_side import environment_of
from letheon.studies.single import ORIGINAL
from letheon.studies.spec import StudySettings
from running import same, short_run


@pytest.fixture(autouse=True)
def _without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("letheon.studies.figures.save_study_figures", lambda record, folder: ())
    monkeypatch.setattr("letheon.studies.figures.study_svgs", lambda record: {})
    monkeypatch.setattr("letheon.report.page.figure_svgs", lambda run: {})


@pytest.fixture
def base(tmp_path: Path, rows: list[Row], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    given = short_run(tmp_path, rows, model, tokenizer)
    return {name: value for name, value in given.items() if name not in ("out", "evaluate")} | {"keep": "last"}


def study_of(base: dict[str, Any], **changed: Any) -> StudySettings:
    return StudySettings.of({"name": "small", "base": base, "grid": {"gamma": [0.5, 1.0]}, **changed})


def write(base: dict[str, Any], folder: Path, **changed: Any) -> Path:
    values = {"name": "small", "base": base, "grid": {"gamma": [0.5, 1.0]}, **changed}
    (folder / "small.yaml").write_text(yaml.safe_dump(values))
    return folder / "small.yaml"


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_ids_by_hand(base: dict[str, Any], tmp_path: Path) -> None:
    # The settings that matter and are no defaults, files by what they hold; a folder by its files and theirs.
    files = sorted(path for path in (tmp_path / "target").iterdir() if path.suffix != ".md" and path.name[0] != ".")
    target = hashlib.sha256(json.dumps([(path.name, sha256_of(path)) for path in files]).encode()).hexdigest()
    matter = {
        "batch_size": 2,
        "beta": 0.5,
        "checkpoint_epochs": 1,
        "delta": 0.5,
        "epochs": 3,
        "forget": sha256_of(tmp_path / "forget.jsonl"),
        "gamma": 0.25,
        "keep": "last",
        "kl": "forward",
        "learning_rate": 0.01,
        "model": target,
        "npo": "token",
        "retain": sha256_of(tmp_path / "retain.jsonl"),
        "target_modules": ["all-linear"],
        "template": "joined",
    }
    expected = hashlib.sha256(json.dumps(matter).encode()).hexdigest()[:12]
    found = api.study_runs_to_do(study_of(base, grid={"gamma": [0.25]}), tmp_path / "study")
    assert found == {expected: "gamma=0.25, seed 0"}


def test_the_list_shrinks_to_nothing(base: dict[str, Any], tmp_path: Path) -> None:
    study, out = study_of(base, evaluate={"max_new_tokens": 4}), tmp_path / "study"
    whole = list(api.study_runs_to_do(study, out))
    assert len(whole) == 3
    assert whole[0] == ORIGINAL
    for number, identity in enumerate(reversed(whole)):
        report = api.study_run(study, out, identity)
        assert report.exit_code == 0
        assert list(api.study_runs_to_do(study, out)) == whole[: 2 - number]
    assert not (out / "study.json").exists()
    record = api.study(study, out, trains=False).record
    assert [run.state for run in record.runs] == ["finished"] * 2
    assert record.original


def test_a_run_that_is_done_is_left_alone(
    base: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, out = study_of(base), tmp_path / "study"
    identity = next(iter(api.study_runs_to_do(study, out)))
    api.study_run(study, out, identity)
    monkeypatch.setattr(api, "unlearn", None)
    assert api.study_run(study, out, identity).exit_code == 0


def test_one_that_failed_is_listed_and_tried_again_where_that_is_asked_for(
    base: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, out = study_of(base), tmp_path / "study"
    first, second = api.study_runs_to_do(study, out)

    def diverge(*_: object, **__: object) -> None:
        raise DivergenceError("the loss is not finite")

    with monkeypatch.context() as patch:
        patch.setattr(api, "unlearn", diverge)
        assert api.study_run(study, out, first).exit_code == 1
        assert api.study_run(study, out, second).exit_code == 1
    assert list(api.study_runs_to_do(study, out)) == []
    assert api.study_run(study, out, first).exit_code == 1  # it is not tried again by itself
    assert list(api.study_runs_to_do(study, out, retry=True)) == [first, second]
    assert api.study_run(study, out, first, retry=True).exit_code == 0
    assert list(api.study_runs_to_do(study, out, retry=True)) == [second]


def test_what_is_no_id_is_refused_with_the_nearest(base: dict[str, Any], tmp_path: Path) -> None:
    study, out = study_of(base), tmp_path / "study"
    first, _ = api.study_runs_to_do(study, out)
    with pytest.raises(SettingsError, match=f"one of the 2 runs of this study, .*did you mean '{first}'.*--list"):
        api.study_run(study, out, first[:-1])


def test_a_search_has_no_list(base: dict[str, Any], tmp_path: Path) -> None:
    study = study_of(base, grid={}, search={"gamma": {"low": 0.1, "high": 1.0}}, objectives="interim.score")
    with pytest.raises(SettingsError, match="no list of them; let each job call"):
        api.study_runs_to_do(study, tmp_path / "study")


def test_the_command_prints_ids_and_nothing_else(base: dict[str, Any], tmp_path: Path) -> None:
    command = ["study", str(write(base, tmp_path)), "--out", str(tmp_path / "study")]
    found = CliRunner().invoke(cli, [*command, "--list"], catch_exceptions=False)
    assert found.stdout.splitlines() == list(api.study_runs_to_do(study_of(base), tmp_path / "study"))
    both = CliRunner().invoke(cli, [*command, "--list", "--jobs", "2"])
    assert both.exit_code == 2
    assert "at most one of --report-only, --jobs, --list, --run, got --jobs and --list" in both.stderr


@pytest.mark.parametrize(
    ("kind", "is_network"),
    [("nfs4", True), ("nfs", True), ("cifs", True), ("lustre", True), ("fuse.sshfs", True), ("ext4", False)],
)
def test_a_journal_on_a_network_disk_is_refused(
    kind: str, is_network: bool, base: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "two words"
    shared.mkdir()
    (tmp_path / "mounts").write_text(
        f"disk / ext4 rw 0 0\nserver:/ {tmp_path} nfs rw 0 0\nx {tmp_path}/two\\040words {kind} rw 0 0\n"
    )
    monkeypatch.setattr(mounts, "MOUNTS", tmp_path / "mounts")
    study = study_of(base, grid={}, search={"gamma": {"low": 0.1, "high": 1.0}}, objectives="interim.score", trials=1)
    monkeypatch.setattr("letheon.studies.search.Search.go_on", lambda *_, **__: None)
    if not is_network:
        api.study(study, shared / "study")
        return
    with pytest.raises(SettingsError, match=rf"journal\.log, on a network disk \({kind}, mounted on .*--storage"):
        api.study(study, shared / "study")


def test_the_innermost_mount_counts_and_of_two_the_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["a / ext4", "b /data nfs4", "c /data/own xfs", "d /data/own tmpfs", "e /database cifs", "broken"]
    (tmp_path / "mounts").write_text("\n".join(lines))
    monkeypatch.setattr(mounts, "MOUNTS", tmp_path / "mounts")
    places = {"/data/x": "nfs4", "/data/own/x": "tmpfs", "/data": "nfs4", "/x": "ext4", "/database/x": "cifs"}
    for place, kind in places.items():
        mount = mounts.mount_of(Path(place))
        assert mount is not None
        assert mount.kind == kind
    monkeypatch.setattr(mounts, "MOUNTS", tmp_path / "none")
    assert mounts.mount_of(tmp_path) is None


def test_each_process_has_its_share_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    assert environment_of(0, num_jobs=3)["OMP_NUM_THREADS"] == "2"
    assert environment_of(0, num_jobs=16)["OMP_NUM_THREADS"] == "1"
    assert "CUDA_VISIBLE_DEVICES" not in environment_of(0, num_jobs=3)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert [environment_of(place, num_jobs=3)["CUDA_VISIBLE_DEVICES"] for place in range(3)] == ["0", "1", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    found = environment_of(1, num_jobs=2)
    assert (found["CUDA_VISIBLE_DEVICES"], found["OMP_NUM_THREADS"]) == ("7", "5")


@pytest.mark.slow
def test_runs_side_by_side_are_those_that_go_one_by_one(base: dict[str, Any], tmp_path: Path) -> None:
    command = ["study", write(base, tmp_path), "--out", tmp_path / "study", "--jobs", 2]
    code, out, err = finish(start(*command))
    assert code == 0, err
    assert "study.html" in out
    assert "gamma=0.5, seed 0: running: process" in err
    study = study_of(base)
    for identity in api.study_runs_to_do(study, tmp_path / "alone"):
        api.study_run(study, tmp_path / "alone", identity)
    for folder in (tmp_path / "alone" / "runs").iterdir():
        assert same(weights(folder), weights(tmp_path / "study" / "runs" / folder.name))


@pytest.mark.slow
def test_two_processes_at_one_run_do_it_once(base: dict[str, Any], tmp_path: Path) -> None:
    file, out = write(base, tmp_path), tmp_path / "study"
    identity = next(iter(api.study_runs_to_do(study_of(base), out)))
    both = [start("study", file, "--out", out, "--run", identity) for _ in range(2)]
    assert [finish(process)[0] for process in both] == [0, 0]
    (folder,) = (out / "runs").iterdir()
    assert len(json.loads((folder / "attempts.json").read_text())) == 1


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_killed_is_still_to_do_and_goes_on(
    number: signal.Signals, base: dict[str, Any], tmp_path: Path
) -> None:
    study, out, file = study_of(base), tmp_path / "study", write(base, tmp_path)
    whole = list(api.study_runs_to_do(study, out))
    slowly = (
        "import time, letheon.training.loop as l; t = l.take_step\n"
        "def slow(run): time.sleep(0.3); print('step', run.step, file=sys.stderr); t(run)\nl.take_step = slow"
    )
    code, _, err = signalled("study", file, "--out", out, "--run", whole[0], at="step 3", number=number, setup=slowly)
    assert code == (143 if number == signal.SIGTERM else -signal.SIGKILL), err
    assert list(api.study_runs_to_do(study, out)) == whole
    assert api.study_run(study, out, whole[0]).exit_code == 0
    assert list(api.study_runs_to_do(study, out)) == whole[1:]
    api.study_run(study, tmp_path / "unbroken", whole[0])
    (folder,), (unbroken,) = (list((place / "runs").iterdir()) for place in (out, tmp_path / "unbroken"))
    assert same(weights(folder), weights(unbroken))


@pytest.mark.slow
def test_a_signal_ends_all_processes_and_the_rest_is_done_later(base: dict[str, Any], tmp_path: Path) -> None:
    base["epochs"] = 2000
    study, out = study_of(base), tmp_path / "study"
    file = write(base, tmp_path)
    command = ["study", file, "--out", out, "--jobs", 2]
    process = start(*command)
    folders = out / "runs"
    until = time.monotonic() + 100
    while len(list(folders.glob("*/log.jsonl"))) < 2 and time.monotonic() < until:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    code, _, err = finish(process)
    assert code == 143, err
    assert len(api.study_runs_to_do(study, out)) == 2
    ends = [json.loads((folder / "attempts.json").read_text())[-1] for folder in folders.iterdir()]
    assert all("signal 15" in end["reason"] for end in ends)


def weights(folder: Path) -> dict[str, Any]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")
