"""Going on with a run, ending one early, and the same bytes from the same settings."""

import errno
import json
import os
import shutil
import signal
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from killing import WRITES, count_calls, difference, end_if_it_hangs, flip_a_bit, model_in, run_and_kill, set_aside
from letheon import Row, UnlearnSettings
from letheon.errors import OutputError, SettingsError
from letheon.training.judge import StateScore
from letheon.training.tracking import Silent, first_events, open_log
from letheon.unlearning.interim import interim_score
from letheon.unlearning.run import unlearn
from running import After, events, model_of, run, same, short_run

Made = dict[str, Any]


@pytest.fixture
def given(tmp_path: Path, rows: list[Row], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Made:
    """Settings of a run of 9 steps, scored and saved after 3, 6 and 9."""
    return {**short_run(tmp_path, rows, model, tokenizer), "keep": "last"}


@pytest.fixture
def first_is_best(given: Made, monkeypatch: pytest.MonkeyPatch) -> Made:
    """The same run, of whose three scored states the first counts as the best."""

    def falling(*args: Any, **kwargs: Any) -> StateScore:
        found = interim_score(*args, **kwargs)
        return replace(found, values={**found.values, "score": 1 / (1 + found.step)})

    monkeypatch.setattr("letheon.unlearning.judging.interim_score", falling)
    return {**given, "keep": "best", "keep_checkpoints": 1}


class Listening(Silent):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


def resume(given: Mapping[str, Any]) -> list[str]:
    """Resume a run and return what it told its observer."""
    observer = Listening()
    unlearn(UnlearnSettings.of({**given, "resume": True}), observer=observer)
    return observer.notes


def copy_back(whole: Path, given: Mapping[str, Any]) -> Path:
    return Path(shutil.copytree(whole, given["out"]))


# Damaged checkpoints


def test_a_damaged_checkpoint_is_named_to_the_user_and_in_the_log(given: Made) -> None:
    run(given)
    whole = set_aside(given)
    folder = copy_back(whole, given)
    broken = folder / "checkpoints" / "step-9" / "optimiser.safetensors"
    flip_a_bit(broken)
    expected = f"{broken}: differs from its checksum; this checkpoint is ignored"
    assert expected in resume(given)
    messages = [event["message"] for event in events(folder, "note")]
    assert messages[-2:] == ["resumed after step 6", expected]
    assert steps_of(folder) == steps_of(whole) == list(range(1, 10))
    assert same(model_in(folder), model_in(whole))


def steps_of(folder: Path) -> list[int]:
    return [event["step"] for event in events(folder, "step")]


def test_a_damaged_best_state_is_made_again(first_is_best: Made) -> None:
    assert run(first_is_best).kept.step == 3
    whole = set_aside(first_is_best)
    folder = copy_back(whole, first_is_best)
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["step-3", "step-9"]
    flip_a_bit(folder / "checkpoints" / "step-3" / "parameters.safetensors")
    notes = resume(first_is_best)
    assert any("step-9, which builds on it, is skipped" in note for note in notes)
    assert same(model_in(folder), model_in(whole))
    assert steps_of(folder) == list(range(1, 10))


@pytest.mark.slow
def test_a_state_that_is_damaged_while_the_run_lasts_is_an_error_that_resume_mends(first_is_best: Made) -> None:
    run(first_is_best)
    whole = set_aside(first_is_best)
    kept = first_is_best["out"] / "checkpoints" / "step-3" / "parameters.safetensors"
    with pytest.raises(OutputError, match=r"step-3: .*damaged after it was written; run again with --resume"):
        unlearn(UnlearnSettings.of(first_is_best), observer=After(8, lambda: flip_a_bit(kept)))
    resume(first_is_best)
    assert same(model_in(first_is_best["out"]), model_in(whole))


def test_an_earlier_run_that_goes_back_takes_the_later_ones_with_it(given: Made) -> None:
    ties = {"method": "npo-ties", "epochs": 2}
    run(given, **ties)
    whole = set_aside(given)
    folder = copy_back(whole, given)
    flip_a_bit(folder / "checkpoints" / "member-1" / "step-6" / "parameters.safetensors")
    notes = resume({**given, **ties})
    assert any("member-1/step-6/parameters.safetensors: differs" in note for note in notes)
    assert same(model_in(folder), model_in(whole))
    assert steps_of(folder) == [*range(1, 7), *range(1, 7)]


@pytest.mark.parametrize("lost", [1, 400])
def test_a_log_that_lost_its_end_goes_on_after_its_last_whole_line(lost: int, given: Made) -> None:
    run(given)
    log = given["out"] / "log.jsonl"
    end = log.read_bytes().rindex(b'{"event": "end"')
    os.truncate(log, end - lost)
    resume(given)
    assert all(json.loads(line) for line in log.read_text().splitlines())
    assert events(given["out"], "end")


def test_settings_that_an_earlier_version_did_not_know_are_taken_as_their_defaults(given: Made) -> None:
    run(given, epochs=1)
    path = given["out"] / "run.yaml"
    before = yaml.safe_load(path.read_text())
    del before["lora_dropout"]
    path.write_text(yaml.safe_dump(before))
    assert run(given, epochs=1, resume=True).reason == "finished"


@pytest.mark.parametrize("is_on", [False, True])
def test_a_run_of_a_version_that_had_more_settings_goes_on_only_where_they_were_off(is_on: bool, given: Made) -> None:
    run(given, epochs=1)
    path = given["out"] / "run.yaml"
    before = {**yaml.safe_load(path.read_text()), "compile": is_on}
    path.write_text(yaml.safe_dump(before))
    if is_on:
        with pytest.raises(SettingsError, match=r"run\.yaml: compile: this setting .* removed.* by the version that"):
            run(given, epochs=1, resume=True)
        with pytest.raises(SettingsError, match=r"^compile: this setting of earlier versions has been removed"):
            UnlearnSettings.of(before)
    else:
        assert run(given, epochs=1, resume=True).reason == "finished"
        assert unlearn(UnlearnSettings.of({**before, "resume": True})).reason == "finished"


def test_what_does_not_change_the_result_may_differ(given: Made) -> None:
    run(given, epochs=1)
    others = {"keep_checkpoints": 1, "checkpoint_minutes": None, "time_limit_s": 1e6, "trackers": "tensorboard"}
    report = run(given, epochs=1, resume=True, cache_dir=given["out"].parent / "other", **others)
    assert report.num_steps == 3


def test_a_run_goes_on_with_other_trackers_and_less_memory_to_the_same_weights(given: Made) -> None:
    given |= {"lora_dropout": 0.2}
    whole = model_of(run(given))
    set_aside(given)
    unlearn(UnlearnSettings.of(given), observer=After(5, signalled(signal.SIGTERM)))
    report = run(given, resume=True, trackers="tensorboard", gradient_checkpointing=True)
    assert same(model_of(report), whole)
    assert list(given["out"].glob("**/events.out.tfevents*"))
    assert yaml.safe_load((given["out"] / "run.yaml").read_text())["trackers"] == ["tensorboard"]


@pytest.mark.parametrize(
    ("name", "value"),
    [("dtype", "bfloat16"), ("max_batch_tokens", 64), ("store_lower", True), ("keep", "best")],
)
def test_what_changes_the_result_may_not_differ(name: str, value: object, given: Made) -> None:
    run(given, epochs=1)
    with pytest.raises(SettingsError, match=f"resume: {name} differ from the run in"):
        run(given, **{"epochs": 1, "resume": True, name: value})


# Signals


def signalled(number: signal.Signals) -> Callable[[], None]:
    return lambda: signal.raise_signal(number)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_run_after_its_step_with_its_exit_code(number: signal.Signals, code: int, given: Made) -> None:
    run(given)
    whole = set_aside(given)
    report = unlearn(UnlearnSettings.of(given), observer=After(4, signalled(number)))
    assert (report.exit_code, report.num_steps) == (code, 4)
    assert report.reason == f"signal {number}"
    assert (given["out"] / "checkpoints" / "step-4" / "manifest.json").exists()
    resume(given)
    assert difference(whole, given["out"]) is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="ends a forked process")
def test_a_second_signal_ends_it_at_once(given: Made) -> None:
    def twice() -> None:
        signal.raise_signal(signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        (given["out"] / "went on").touch()

    child = os.fork()
    if child == 0:
        end_if_it_hangs()
        unlearn(UnlearnSettings.of(given), observer=After(4, twice))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGTERM
    assert not (given["out"] / "went on").exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_what_a_signal_asks_for_is_saved_before_it_is_scored(given: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    run(given)
    whole = set_aside(given)
    # A machine that gives little time after SIGTERM kills in the scoring that follows the save.
    monkeypatch.setattr("letheon.unlearning.run.Silent", lambda: After(5, signalled(signal.SIGTERM)))
    scorings = ("letheon.unlearning.judging.interim_score",)
    assert run_and_kill(given, scorings, at=3)
    assert (given["out"] / "checkpoints" / "step-5" / "manifest.json").exists()
    resume(given)
    assert difference(whole, given["out"]) is None


def test_a_time_limit_leaves_a_run_that_can_go_on(given: Made) -> None:
    run(given)
    whole = set_aside(given)
    assert run(given, time_limit_s=1e-3).num_steps == 0
    resume(given)
    assert difference(whole, given["out"]) is None


# One run in a folder


def test_a_second_run_in_the_folder_is_refused_and_the_first_goes_on(given: Made) -> None:
    refused: list[str] = []

    def try_again() -> None:
        for again in (False, True):
            with pytest.raises(OutputError, match="is in use by process") as caught:
                run(given, resume=again)
            refused.append(str(caught.value))

    report = unlearn(UnlearnSettings.of(given), observer=After(4, try_again))
    assert report.reason == "finished"
    assert len(refused) == 2
    assert str(os.getpid()) in refused[0]
    assert "choose another --out" in refused[0]
    assert [path.name for path in given["out"].rglob(".*")] == []


def test_a_refused_folder_is_left_as_it_was(given: Made) -> None:
    given["out"].mkdir()
    (given["out"] / "thesis.tex").write_text("x")
    (given["out"] / ".draft.tmp").write_text("y")
    for again in (False, True):
        with pytest.raises(OutputError, match="already holds files"):
            run(given, resume=again)
    assert sorted(path.name for path in given["out"].iterdir()) == [".draft.tmp", "thesis.tex"]


# A full disk


def fails_at(number: int, original: Callable[..., Any]) -> Callable[..., Any]:
    """`original` until its call `number`, from 1, where the disk is full, and from then on."""
    calls: list[None] = []

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        if len(calls) >= number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(*args, **kwargs)

    return wrapper


@pytest.mark.parametrize(
    ("place", "number"), [("os.fsync", 20), ("os.fsync", 31), ("letheon.training.tracking.Log.flush", 2)]
)
def test_a_disk_that_fills_up_ends_a_run_that_can_go_on(
    place: str, number: int, given: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pkgutil import resolve_name

    run(given)
    whole = set_aside(given)
    with monkeypatch.context() as patched:
        patched.setattr(place, fails_at(number, resolve_name(place)))
        with pytest.raises(OutputError, match="No space left on device") as caught:
            run(given)
    assert caught.value.exit_code == 2
    assert "free space" in str(caught.value)
    resume(given)
    assert difference(whole, given["out"]) is None


def test_a_disk_without_room_for_the_run_is_said_before_the_first_step(
    given: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shutil import disk_usage

    free = disk_usage(given["out"].parent)._replace(free=50_000)
    monkeypatch.setattr("letheon.unlearning.folder.check_room", _with_free(free))
    with pytest.raises(OutputError, match=r"the run's model and up to 4 checkpoints needs .* too little"):
        run(given)
    assert not (given["out"] / "checkpoints").exists()
    assert not (given["out"] / "run.yaml").exists()


def _with_free(free: Any) -> Callable[..., None]:
    from unittest.mock import patch

    from letheon.storage.files import check_room

    def checked(*args: Any, **kwargs: Any) -> None:
        with patch("shutil.disk_usage", lambda _: free):
            check_room(*args, **kwargs)

    return checked


def test_a_kill_could_come_at_many_places(given: Made) -> None:
    # The harness that the kill tests rest on sees the writes of three checkpoints, a store and a model.
    assert count_calls(given, WRITES) > 150


def test_the_report_of_a_resumed_run_is_that_of_the_whole(given: Made) -> None:
    whole = run(given)
    set_aside(given)
    unlearn(UnlearnSettings.of(given), observer=After(2, signalled(signal.SIGTERM)))
    resumed = run(given, resume=True)
    assert (resumed.kept, resumed.num_steps, resumed.num_tokens) == (whole.kept, whole.num_steps, whole.num_tokens)
    assert resumed.exit_code == 0
    assert model_of(resumed).keys()


# The log


def test_a_log_is_cut_after_events_and_not_after_bytes(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with open_log(path) as log:
        log.write("start", time="now")
        log.write("note", message="said")
        for step, duration_s in ((1, 0.5), (2, 0.123456)):
            log.write("step", step=step, duration_s=duration_s)
        assert log.flush() == 4
        log.write("note", message="resumed after step 2", resumed=True)
    whole = path.read_bytes().splitlines(keepends=True)
    assert first_events(path, 3) == (sum(map(len, whole[:3])), 3)
    assert first_events(path, 0) == (0, 0)
    assert first_events(path, 9) == (len(b"".join(whole)), 4)
    path.write_bytes(b"".join(whole)[:-5])
    with open_log(path, keep_events=3) as log:
        log.write("step", step=2)
        assert log.flush() == 4
    assert path.read_bytes().splitlines(keepends=True)[:3] == whole[:3]
    assert len(path.read_bytes().splitlines()) == 4
