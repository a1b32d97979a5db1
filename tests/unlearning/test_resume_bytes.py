"""The same bytes from the same settings, whatever else goes on: saves, other runs, what the process drew before."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from expert_families import config_of
from killing import difference, end_if_it_hangs, flip_a_bit, model_in, set_aside, told
from launching import TIMEOUT_S
from letheon import Row, UnlearnSettings
from letheon.model.loading import save_model
from letheon.training.randomness import dropout_of_step
from letheon.unlearning.run import unlearn
from running import events, run, same, short_run

Made = dict[str, Any]


@pytest.fixture
def given(tmp_path: Path, rows: list[Row], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Made:
    """Settings of a run of 9 steps, scored and saved after 3, 6 and 9."""
    return {**short_run(tmp_path, rows, model, tokenizer), "keep": "last"}


def contents(folder: Path) -> dict[str, bytes]:
    """What a run leaves, byte for byte, without the files that hold times."""
    names = (
        "adapter/adapter_model.safetensors",
        "model/model.safetensors",
        "model/config.json",
        "model/tokenizer.json",
    )
    checkpoints = sorted(str(path.relative_to(folder)) for path in (folder / "checkpoints").rglob("*.safetensors"))
    return {name: (folder / name).read_bytes() for name in (*names, *checkpoints)}


def test_the_same_settings_give_the_same_bytes(given: Made, tmp_path: Path) -> None:
    dropped = {"lora_dropout": 0.2, "schedule": "paired", "holdout": None}
    torch.manual_seed(1)
    run(given, **dropped, cache_dir=tmp_path / "one")
    whole = set_aside(given)
    torch.manual_seed(2)  # what the process drew before is none of the run's business
    run(given, **dropped, cache_dir=tmp_path / "two")
    assert len(contents(whole)) == 8
    assert contents(given["out"]) == contents(whole)
    assert told(given["out"]) == told(whole)
    stores = [next((tmp_path / name / "reference").iterdir()).read_bytes() for name in ("one", "two")]
    assert stores[0] == stores[1]


def test_what_a_step_drops_leaves_the_processs_random_numbers_alone() -> None:
    module = torch.nn.Dropout(0.5).eval()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    ones = torch.ones(64)
    drawn = []
    for seed, step in ((0, 4), (0, 4), (0, 5), (1, 4)):
        with dropout_of_step([module], seed=seed, step=step):
            drawn.append(module(ones))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[3])
    assert torch.equal(module(ones), ones)


@pytest.mark.slow
def test_dropout_drops_in_steps_and_follows_the_seed(given: Made, tmp_path: Path) -> None:
    losses = {
        (share, seed): [
            event["loss"]
            for event in events(
                run(given, lora_dropout=share, seed=seed, out=tmp_path / f"{share}-{seed}").folder, "step"
            )
        ]
        for share, seed in ((0.0, 0), (0.5, 0), (0.5, 1))
    }
    assert losses[0.0, 0][0] == losses[0.5, 0][0]  # B is zero at the start, and nothing is added whatever is dropped
    assert losses[0.0, 0][1:] != losses[0.5, 0][1:]
    assert losses[0.5, 0][1:] != losses[0.5, 1][1:]


@pytest.mark.parametrize("number", [1, 2])
def test_saving_more_often_changes_nothing(number: int, given: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    run(given, checkpoint_minutes=None)
    whole = set_aside(given)
    monkeypatch.setattr("letheon.training.checkpoint.LARGEST_SHARE", 1e9)
    run(given, checkpoint_minutes=1e-9, keep_checkpoints=number)
    assert difference(whole, given["out"]) is None
    assert len(list((given["out"] / "checkpoints").iterdir())) == number


# A store for many


def test_a_damaged_store_is_built_anew(given: Made, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run(given, cache_dir=tmp_path / "cache")
    whole = set_aside(given)
    store = next((tmp_path / "cache" / "reference").iterdir())
    before = store.read_bytes()
    flip_a_bit(store)
    run(given, cache_dir=tmp_path / "cache")
    assert "differs from its checksum; it is rebuilt" in caplog.text
    assert store.read_bytes() == before
    assert difference(whole, given["out"]) is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="runs forked processes")
@pytest.mark.slow
def test_many_runs_at_once_build_one_store(given: Made, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    cache = tmp_path / "shared"
    children = []
    for number in range(4):
        child = os.fork()
        if child == 0:
            _build_and_mark({**given, "out": tmp_path / f"run-{number}", "cache_dir": cache, "epochs": 1}, marks)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 4
    assert len(list(marks.iterdir())) == 1
    assert [path.suffix for path in (cache / "reference").iterdir()] == [".safetensors"]
    models = [model_in(tmp_path / f"run-{number}") for number in range(4)]
    assert all(same(models[0], other) for other in models[1:])


def _build_and_mark(given: Made, marks: Path) -> None:
    from letheon.engine import reference_cache
    from letheon.engine.reference import build_reference

    build = build_reference

    def marked(*args: Any, **kwargs: Any) -> Any:
        (marks / str(os.getpid())).touch()
        return build(*args, **kwargs)

    setattr(reference_cache, "build_reference", marked)  # noqa: B010 - it is no public name there
    code = 1
    end_if_it_hangs()
    try:
        unlearn(UnlearnSettings.of(given))
        code = 0
    finally:
        os._exit(code)


# All files, whatever the process is like


def shared_and_saved(folder: Path) -> dict[str, bytes]:
    """All that a run writes as model, adapter and checkpoints, without the cards, which give times."""
    parts = (folder / part for part in ("model", "adapter", "checkpoints"))
    paths = [path for part in parts for path in part.rglob("*") if path.is_file() and path.name != "README.md"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_durations_change_no_byte_of_checkpoints(given: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    run(given, checkpoint_minutes=None)
    whole = set_aside(given)
    real = time.monotonic
    monkeypatch.setattr("time.monotonic", lambda: 1e7 * real())
    run(given, checkpoint_minutes=None)
    assert (given["out"] / "log.jsonl").stat().st_size != (whole / "log.jsonl").stat().st_size
    found = shared_and_saved(whole)
    assert {Path(name).name for name in found} >= {"state.json", "manifest.json", "adapter_config.json", "config.json"}
    assert shared_and_saved(given["out"]) == found


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["olmo", "deepseek_v3"])
def test_pythons_hash_seed_changes_no_byte(
    architecture: str, given: Made, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    if architecture != "olmo":
        config = config_of(architecture, vocab_size=len(tokenizer))
        save_model(AutoModelForCausalLM.from_config(config), tokenizer, Path(given["model"]))
    flags = {**given, "target_modules": "all-linear"}
    del flags["trackers"], flags["out"], flags["evaluate"]
    pairs = [part for name, value in flags.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    for seed in ("1", "2"):
        out, cache = tmp_path / f"run-{seed}", tmp_path / f"cache-{seed}"
        done = subprocess.run(
            [sys.executable, "-c", "from letheon.cli.main import main; main()", "unlearn", *pairs, "--trackers", "",
             "--no-evaluate", "--out", str(out), "--cache-dir", str(cache)],
            env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True,
            timeout=TIMEOUT_S, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    first, second = (shared_and_saved(tmp_path / f"run-{seed}") for seed in "12")
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []
    assert told(tmp_path / "run-1") == told(tmp_path / "run-2")
    stores = [snapshot_of(tmp_path / f"cache-{seed}") for seed in "12"]
    assert stores[0] == stores[1]


def snapshot_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
