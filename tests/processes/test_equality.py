"""Two and three processes come to what one comes to, step by step and score by score."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerBase

from audited import new_world
from courses import CASES, arguments_of, check_same, course_of, flags_of, make_inputs
from launching import together
from letheon.cli.main import cli
from running import events

pytestmark = pytest.mark.slow

ALL: dict[str, dict[str, Any]] = {
    **CASES,
    "fewer rows than processes": {"batch_size": 2},
    "in pieces": {"max_batch_tokens": 60},
    "all weights": {"method": "neko", "adapt": "weights", "learning_rate": 1e-4},
    "general text": {"general": "auto", "score_at": "1,2,3"},
    "two runs of a method": {"method": "npo-ties"},
}


@pytest.fixture(scope="module")
def inputs(tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and rows."""
    return make_inputs(tmp_path_factory.mktemp("inputs"), tokenizer)


def runs(inputs: Path, folder: Path) -> list[list[str]]:
    """Return the command lines of all cases, a folder each."""
    return [
        [*arguments_of(inputs, folder / f"{number}", cache_dir=folder / "cache", **changed), "--no-evaluate"]
        for number, changed in enumerate(ALL.values())
    ]


def alone_do(commands: Sequence[Sequence[str]]) -> None:
    for arguments in commands:
        cli(arguments, standalone_mode=False)


@pytest.fixture(scope="module")
def alone(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all cases in one process."""
    folder = tmp_path_factory.mktemp("alone")
    alone_do(runs(inputs, folder))
    return folder


@pytest.mark.parametrize("num", [2, 3])
def test_every_kind_of_step(num: int, inputs: Path, alone: Path, tmp_path: Path) -> None:
    together(num, runs(inputs, tmp_path), tmp_path)
    for number, case in enumerate(ALL):
        try:
            check_same(course_of(tmp_path / f"{number}"), course_of(alone / f"{number}"))
        except AssertionError as error:
            raise AssertionError(case) from error
        one, other = (events(folder / f"{number}", "interim") for folder in (tmp_path, alone))
        assert len(one) == len(other) > 0
        for score, expected in zip(one, other, strict=True):
            assert score == {
                name: pytest.approx(value, rel=1e-3, abs=1e-5) if isinstance(value, float) else value
                for name, value in expected.items()
            }, case


def test_another_number_goes_on(inputs: Path, alone: Path, tmp_path: Path) -> None:
    case = "low-rank-npo, dropout"
    given = arguments_of(inputs, tmp_path / "run", **{**CASES[case], "checkpoint_epochs": 1})
    given = [*given, "--no-evaluate", "--cache-dir", str(tmp_path / "cache")]
    together(2, [given], tmp_path)
    # As if it had been ended after two epochs of three.
    for late in ("model", "adapter", "checkpoints/step-6"):
        shutil.rmtree(tmp_path / "run" / late)
    together(3, [[*given, "--resume"]], tmp_path)
    assert len(events(tmp_path / "run", "step")) == 6
    check_same(course_of(tmp_path / "run"), course_of(alone / str(list(ALL).index(case))))


def test_scores_are_equal_to_the_digit(inputs: Path, tmp_path: Path) -> None:
    given = {"model": inputs / "target", "forget": inputs / "forget.jsonl", "retain": inputs / "retain.jsonl"}
    alone_do([["evaluate", *flags_of({**given, "out": tmp_path / "one"})]])
    together(3, [["evaluate", *flags_of({**given, "out": tmp_path / "three"})]], tmp_path)
    one, three = (tmp_path / name for name in ("one", "three"))
    assert scores_in(three) == scores_in(one)
    assert (three / "predictions.jsonl").read_bytes() == (one / "predictions.jsonl").read_bytes()


def scores_in(folder: Path) -> Any:
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))["scores"]


def test_memorising_takes_the_same_steps(inputs: Path, tmp_path: Path) -> None:
    given = {"model": inputs / "target", "rows": inputs / "forget.jsonl", "max_steps": 12, "batch_tokens": 128}
    alone_do([["memorize", *flags_of({**given, "out": tmp_path / "one"})]])
    together(2, [["memorize", *flags_of({**given, "out": tmp_path / "two"})]], tmp_path)
    outs = [tmp_path / name for name in ("one", "two")]
    reports = [json.loads((out / "memorize.json").read_text(encoding="utf-8"))["report"] for out in outs]
    assert [report["steps"] for report in reports] == [12, 12]
    before, one, two = (load_file(folder / "model.safetensors") for folder in (inputs / "target", *outs))
    for name, value in one.items():
        moved = float((value - before[name]).abs().max())
        assert float((two[name] - value).abs().max()) <= 0.01 * moved, name


def test_an_audit_finds_the_same(tmp_path: Path) -> None:
    world = new_world(tmp_path, num=20, models=("before", "never"))
    attacks = "membership,extraction,sampling,linear-probe,relearning-part-lora"
    for num in (1, 2):
        # So few answers at once that each process draws some.
        given = world.given("never", attacks=tuple(attacks.split(",")), samples=4, batch_size=4).plain()
        names = ("model", "before", "forget", "retain", "holdout", "template", "samples", "batch_size")
        named = {name: given[name] for name in names}
        arguments = ["audit", *flags_of({**named, "attacks": attacks, "out": tmp_path / f"audit-{num}"})]
        together(num, [arguments], tmp_path)
    one, two = (
        json.loads((tmp_path / f"audit-{num}" / "audit" / "outcomes.json").read_text(encoding="utf-8"))
        for num in (1, 2)
    )
    assert one.keys() == two.keys() > {"asked.before", "linear-probe.after"}
    # The model that hides the rows, and relearning, take steps, which are equal to rounding.
    for name in {name for name in one if not name.startswith("relearning") and not name.endswith(".hiding")}:
        assert rounded(two[name]["outcome"]) == rounded(one[name]["outcome"]), name
    for name in one:  # what greedy decoding says may differ in a word
        if name.startswith("relearning"):
            recovered = [fmean(point["values"]) for of in (one, two) for point in of[name]["outcome"]["points"][-1:]]
            assert recovered[0] == pytest.approx(recovered[1], abs=0.15), name


def rounded(value: Any) -> Any:
    """Return plain values with numbers to four digits."""
    if isinstance(value, dict):
        return {name: rounded(one) for name, one in value.items()}
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return round(value, 4) if isinstance(value, float) else value
