"""Checkpoints: whole or named and passed over, how many stay, and what a full disk leaves."""

import errno
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors import SafetensorError

from killing import flip_a_bit
from letheon.errors import OutputError
from letheon.storage.files import (
    check_room,
    full_disk_is_an_error,
    is_leftover,
    leftovers_of,
    replace_file,
    replace_folder,
    sweep,
)
from letheon.training import checkpoint as module
from letheon.training.checkpoint import (
    Checkpoint,
    Position,
    SaveClock,
    damage,
    drop_checkpoints,
    load_checkpoint,
    newest_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)
from letheon.training.judge import StateScore


def checkpoint_of(step: int, *, log_events: int = 0) -> Checkpoint:
    generator = torch.Generator().manual_seed(step)
    score = StateScore(step, 0.1, {"forget_recall": 1 / 3, "score": 0.2, "retain_loss": 1e-17, "membership": None})
    return Checkpoint(
        Position(step, 10 * step, log_events, (score,), {"weight": 0.1 + 0.2}, (1.5, 0.1 + 0.7)),
        {"layer.weight": torch.randn(4, 3, generator=generator).T},  # not contiguous, as some parameters are
        {"0.exp_avg": torch.randn(3, 4, generator=generator), "0.step": torch.tensor(float(step))},
    )


def steps_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_what_is_loaded_is_what_was_saved(tmp_path: Path) -> None:
    saved = checkpoint_of(7, log_events=99)
    target = save_checkpoint(saved, tmp_path)
    found = load_checkpoint(target)
    assert found is not None
    assert found.position == saved.position
    assert torch.equal(found.parameters["layer.weight"], saved.parameters["layer.weight"])
    assert all(torch.equal(found.optimiser[name], value) for name, value in saved.optimiser.items())
    assert steps_in(tmp_path) == {"step-7"}
    assert steps_in(target) == {"parameters.safetensors", "optimiser.safetensors", "state.json", "manifest.json"}


def cut_in_half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("name", [*map(str, module.FILES), "manifest.json"])
@pytest.mark.parametrize("harm", [flip_a_bit, cut_in_half, Path.unlink])
def test_harm_to_any_file_is_named_and_the_one_before_is_used(
    name: str, harm: Callable[[Path], None], tmp_path: Path
) -> None:
    for step in (2, 4):
        save_checkpoint(checkpoint_of(step), tmp_path)
    harm(tmp_path / "step-4" / name)
    notes: list[str] = []
    found = newest_checkpoint(tmp_path, note=notes.append)
    assert found is not None
    assert found.position.step == 2
    assert len(notes) == 1
    if name != "manifest.json" or harm is not flip_a_bit:  # there the bit lies in what is said of another file
        assert f"{tmp_path / 'step-4' / name}: " in notes[0]
    assert notes[0].endswith("this checkpoint is ignored")


def test_each_harm_is_told_from_the_others(tmp_path: Path) -> None:
    target = save_checkpoint(checkpoint_of(1), tmp_path)
    path = target / "optimiser.safetensors"
    size = path.stat().st_size
    assert damage(target) is None
    flip_a_bit(path)
    assert damage(target) == f"{path}: differs from its checksum"
    cut_in_half(path)
    assert damage(target) == f"{path}: is {size // 2} bytes long, but {size} bytes were written"
    path.unlink()
    assert damage(target) == f"{path}: is missing"


def test_a_position_whose_kept_state_is_gone_is_passed_over(tmp_path: Path) -> None:
    for step in (2, 4, 6):
        save_checkpoint(checkpoint_of(step), tmp_path)
    flip_a_bit(tmp_path / "step-4" / "parameters.safetensors")
    notes: list[str] = []
    needed = {6: (4,), 4: (4,), 2: (2,)}
    found = newest_checkpoint(tmp_path, note=notes.append, needs=lambda position: needed[position.step])
    assert found is not None
    assert found.position.step == 2
    assert "step-6, which builds on it, is skipped" in notes[0]
    drop_checkpoints(tmp_path, after=2)
    assert steps_in(tmp_path) == {"step-2"}


def test_none_of_none_and_of_what_is_no_checkpoint(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "nowhere") is None
    (tmp_path / "step-3").mkdir()
    (tmp_path / "step-x").mkdir()
    assert newest_checkpoint(tmp_path, note=lambda _: None) is None


def test_the_newest_few_and_the_named_ones_stay(tmp_path: Path) -> None:
    for step in (1, 2, 3, 10, 11):
        save_checkpoint(checkpoint_of(step), tmp_path)
    prune_checkpoints(tmp_path, keep_last=2, keep_steps={1, 99})
    assert steps_in(tmp_path) == {"step-1", "step-10", "step-11"}


def test_saving_again_leaves_a_whole_one_and_replaces_a_broken_one(tmp_path: Path) -> None:
    target = save_checkpoint(checkpoint_of(5), tmp_path)
    before = (target / "parameters.safetensors").stat().st_ino
    save_checkpoint(checkpoint_of(5), tmp_path)
    assert (target / "parameters.safetensors").stat().st_ino == before
    cut_in_half(target / "state.json")
    save_checkpoint(checkpoint_of(5), tmp_path)
    assert damage(target) is None
    assert steps_in(tmp_path) == {"step-5"}


# A full disk


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def no_space(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def no_space_in_rust(*_: Any, **__: Any) -> None:
    raise SafetensorError("I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize(
    ("place", "failure"),
    [
        ("letheon.training.checkpoint.save_file", no_space_in_rust),
        ("os.fsync", no_space),
        ("os.replace", no_space),
        ("pathlib.Path.write_text", no_space),
        ("tempfile.mkdtemp", no_space),
        ("shutil.disk_usage", lambda _: Usage(10, 10, 0)),
    ],
)
def test_a_full_disk_leaves_the_checkpoint_before(
    place: str, failure: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(checkpoint_of(2), tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(place, failure)
        with pytest.raises(OutputError, match="earlier checkpoints are intact: free space and continue with --resume"):
            save_checkpoint(checkpoint_of(4), tmp_path)
    assert steps_in(tmp_path) == {"step-2"}
    assert damage(tmp_path / "step-2") is None


def test_room_is_checked_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, 3 * 2**20))
    check_room(tmp_path / "not" / "yet", 3 * 2**20, what="it")
    with pytest.raises(OutputError, match=r"it needs 5\.0 MiB, but the disk has 3\.0 MiB free, 2\.0 MiB too little"):
        check_room(tmp_path / "not" / "yet", 5 * 2**20, what="it")


def test_only_a_full_disk_is_called_one(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"cannot be written to \(No space left on device\); go home"):  # noqa: SIM117
        with full_disk_is_an_error(tmp_path, advice="go home"):
            no_space()
    with pytest.raises(PermissionError), full_disk_is_an_error(tmp_path, advice="go home"):
        raise PermissionError(errno.EACCES, "no")


def test_a_device_that_is_full_by_nature(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    with (
        pytest.raises(OutputError, match="No space left on device"),
        full_disk_is_an_error(tmp_path, advice="-"),
        open("/dev/full", "w") as file,
    ):
        file.write("x" * 100_000)


def test_a_folder_that_cannot_be_put_in_place_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").write_text("x")
    rename, calls = os.replace, list[Any]()

    def second_fails(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) == 2:
            no_space()
        rename(source, target)

    monkeypatch.setattr(os, "replace", second_fails)
    with pytest.raises(OutputError, match="No space left"), replace_folder(tmp_path / "model") as temporary:
        (temporary / "new").write_text("y")
    assert steps_in(tmp_path) == {"model"}
    assert steps_in(tmp_path / "model") == {"old"}


def test_sweeping_takes_what_was_left_half_written_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / ".letheon.step-4.abc.tmp").mkdir(parents=True)
    (tmp_path / "checkpoints" / ".letheon.step-4.abc.tmp" / "state.json").write_text("{")
    (tmp_path / ".letheon.model.12.old").mkdir()
    (tmp_path / ".letheon.run.yaml.12.tmp").write_text("a")
    mine = {"notes.tmp", ".x.tmp", ".x.old", ".letheon.tmp", ".letheon.yaml"}
    for name in mine:
        (tmp_path / name).write_text("mine")
    sweep(tmp_path)
    assert steps_in(tmp_path) == {"checkpoints", *mine}
    assert steps_in(tmp_path / "checkpoints") == set()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_file_written_again_takes_with_it_what_killed_processes_of_this_machine_left(tmp_path: Path) -> None:
    dead = os.fork()
    if dead == 0:
        os._exit(0)
    os.waitpid(dead, 0)
    (tmp_path / "a.json").write_text("1")
    with replace_file(tmp_path / "a.json") as temporary:
        machine = temporary.suffixes[-2].partition("_")[2]
        temporary.write_text("2")
    gone = tmp_path / f".letheon.a.json.{dead}_{machine}.tmp"
    left = [
        tmp_path / f".letheon.a.json.{os.getpid()}_{machine}.tmp",  # of a process that is alive: it may be written now
        tmp_path / f".letheon.a.json.{dead}_0123abcd.tmp",  # of another machine, whose processes nobody here knows
        tmp_path / f".letheon.b.json.{dead}_{machine}.tmp",  # of another file
    ]
    for path in (gone, *left):
        path.write_text("half")
    with replace_file(tmp_path / "a.json") as temporary:
        temporary.write_text("3")
        left.remove(temporary)
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "a.json", *left])


@pytest.mark.parametrize("leave", [replace_file, replace_folder])
def test_what_we_leave_half_written_is_known_as_ours(leave: Any, tmp_path: Path) -> None:
    with leave(tmp_path / "made") as temporary:
        assert is_leftover(temporary)
        if leave is replace_file:
            temporary.write_text("x")
        assert leftovers_of(tmp_path / "made") == [temporary]
        assert leftovers_of(tmp_path / "mad") == []
    assert steps_in(tmp_path) == {"made"}


# Saving between scorings


def test_the_clock_waits_its_minutes_and_longer_where_saving_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    clock = SaveClock(2.0, saved_at_s=1000.0)
    now[0] += 119
    assert not clock.is_due
    now[0] += 1
    assert clock.is_due
    with clock.saving():
        now[0] += 30  # a twentieth of 600 s
    now[0] += 599
    assert not clock.is_due
    now[0] += 1
    assert clock.is_due
    assert not SaveClock(None, saved_at_s=0.0).is_due
