"""Frozen weights in shares: several processes come to the same numbers as when each holds all."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from bench.shares import growths, make_model
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerBase

from courses import CASES, arguments_of, check_same, course_of, flags_of, make_inputs
from launching import together
from letheon.cli.main import cli
from running import events

pytestmark = pytest.mark.slow

OF_STEPS = (
    "low-rank-npo, dropout",
    "low-rank-npo, all linear layers",
    "npo of logits, reverse KL",
    "undial",
    "idk-dpo",
)
"""Cases that read weights in different ways: schedules and weights of terms do not matter here."""
ALL: dict[str, dict[str, Any]] = {
    **{name: CASES[name] for name in OF_STEPS},
    "rmu, annealed": {**CASES["rmu, annealed"], "adapt": "lora"},
    "fewer rows than processes": {"batch_size": 2},
    "in pieces": {"max_batch_tokens": 60},
    "general text": {"general": "auto", "score_at": "1,2,3"},
    "lower layers stored": {"store_lower": True, "layers": "1:"},
    "activations recomputed": {"gradient_checkpointing": True},
    "decomposed": {"dora": True},
    "bfloat16": {"dtype": "bfloat16"},
}
UNEVEN = ("fewer rows than processes", "in pieces", "general text", "low-rank-npo, dropout")
"""Cases in which processes run different numbers of passes."""


@pytest.fixture(scope="module")
def inputs(tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and rows."""
    return make_inputs(tmp_path_factory.mktemp("inputs"), tokenizer)


def run(inputs: Path, folder: Path, case: str, *more: str) -> list[str]:
    """Return the command line of a case."""
    switches = [f"--{name.replace('_', '-')}" for name, value in ALL[case].items() if value is True]
    valued = {name: value for name, value in ALL[case].items() if value is not True}
    given = arguments_of(inputs, folder / case, cache_dir=folder / "cache", **valued)
    return [*given, "--no-evaluate", *switches, *more]


@pytest.mark.parametrize(("num", "cases"), [(2, tuple(ALL)), (3, UNEVEN)])
def test_steps_and_scorings_are_those_of_whole_weights(
    num: int, cases: tuple[str, ...], inputs: Path, tmp_path: Path
) -> None:
    for how in ("whole", "shard"):
        flags = ["--shard"] if how == "shard" else []
        together(num, [run(inputs, tmp_path / how, case, *flags) for case in cases], tmp_path)
    for case in cases:
        ours, expected = (tmp_path / how / case for how in ("shard", "whole"))
        is_rounded = case == "bfloat16"
        if not is_rounded:
            try:
                check_same(course_of(ours), course_of(expected))
            except AssertionError as error:
                raise AssertionError(case) from error
        found, wanted = (load_file(folder / "model" / "model.safetensors") for folder in (ours, expected))
        assert {name: value.dtype for name, value in found.items()} == {n: value.dtype for n, value in wanted.items()}
        # The products are the same, but the bits of a product depend on where its matrix lies in memory.
        rounding = 2**-7 if is_rounded else 1e-4
        assert all(torch.allclose(found[name], value, atol=rounding) for name, value in wanted.items()), case
        assert scores_of(ours) == pytest.approx(scores_of(expected), abs=0.05 if is_rounded else 1e-3), case


def scores_of(folder: Path) -> dict[str, float]:
    """Return the numbers of a run's scorings, by scoring and name."""
    scorings = enumerate(events(folder, "interim"))
    return {f"{n} {k}": v for n, scoring in scorings for k, v in scoring.items() if isinstance(v, int | float)}


def test_one_command_to_a_verdict_and_evaluate(inputs: Path, tmp_path: Path) -> None:
    given = arguments_of(inputs, tmp_path / "run", cache_dir=tmp_path / "cache", target_modules="all-linear")
    together(2, [[*given, "--shard"]], tmp_path)
    rows = {side: inputs / f"{side}.jsonl" for side in ("forget", "retain")}
    for side, model in (("before", inputs / "target"), ("after", tmp_path / "run" / "model")):
        out = tmp_path / side
        asked = ["evaluate", *flags_of({"model": model, **rows, "template": "joined", "out": out})]
        cli(asked, standalone_mode=False)
        together(2, [[*asked[:-1], str(tmp_path / f"{side}-2"), "--shard"]], tmp_path)
        alone, shared, of_run = (
            json.loads((folder / "results.json").read_text(encoding="utf-8"))["scores"]
            for folder in (out, tmp_path / f"{side}-2", tmp_path / "run" / "evaluation" / side)
        )
        assert alone == shared
        assert [score for score in alone if score in of_run] == alone  # a run also asks the model before
    cli(["dial", str(tmp_path / "run"), "--dial", "forgotten"], standalone_mode=False)  # in one process
    configs = (
        json.loads((m / "config.json").read_text(encoding="utf-8")) for m in (tmp_path / "run/model", inputs / "target")
    )
    assert next(configs) == next(configs)


def test_no_process_ever_holds_the_whole(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    size = make_model(tmp_path / "tokenizer", tmp_path / "model", num_layers=12)
    assert min(growths(tmp_path / "model", "whole", 3)) > 0.95 * size
    # A share, a tensor's part as it is read, and what a group takes for a moment.
    assert max(growths(tmp_path / "model", "shares", 3)) < 0.6 * size
