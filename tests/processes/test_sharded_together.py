"""Frozen weights in shares: several processes come to the same numbers as when each of them holds all weights."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerBase

from courses import CASES, arguments_of, flags_of, make_inputs
from launching import TIMEOUT_S, command, environment, together
from letheon.cli.main import cli
from letheon.model.architectures import new_model
from letheon.model.loading import save_model
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
PEAK = """
import resource, sys
from letheon.model.loading import load_model, load_tokenizer
from letheon.processes import joined, place

source, shard = sys.argv[1], sys.argv[2] == "shard"
tokenizer = load_tokenizer(source)
with joined():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    load_model(source, tokenizer=tokenizer, shard=shard)
    with open(f"{sys.argv[3]}-{place().rank}", "w") as file:
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, file=file)
"""
"""Writes the growth of its peak of resident memory while a model is loaded, KiB."""


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
def test_steps_and_scorings_have_the_same_bits(num: int, cases: tuple[str, ...], inputs: Path, tmp_path: Path) -> None:
    for how in ("whole", "shard"):
        flags = ["--shard"] if how == "shard" else []
        together(num, [run(inputs, tmp_path / how, case, *flags) for case in cases], tmp_path)
    for case in cases:
        ours, expected = (tmp_path / how / case for how in ("shard", "whole"))
        for path in ("adapter/adapter_model.safetensors", "model/model.safetensors"):
            found, wanted = load_file(ours / path), load_file(expected / path)
            assert found.keys() == wanted.keys(), case
            assert all(torch.equal(found[name], value) for name, value in wanted.items()), (case, path)
        assert events(ours, "interim") == events(expected, "interim"), case


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
    configs = (
        json.loads((m / "config.json").read_text(encoding="utf-8")) for m in (tmp_path / "run/model", inputs / "target")
    )
    assert next(configs) == next(configs)


def test_no_process_ever_holds_the_whole(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    model = new_model(
        "llama", tokenizer=tokenizer, width=1024, num_layers=12, num_heads=8, intermediate=4096, context=128, seed=0
    )
    save_model(model, tokenizer, tmp_path / "model")
    size = sum(parameter.nbytes for parameter in model.parameters()) / 1024
    script = tmp_path / "peak.py"
    script.write_text(PEAK, encoding="utf-8")
    growths: dict[str, list[int]] = {}
    for how in ("whole", "shard"):
        start = command(3, str(script), str(tmp_path / "model"), how, str(tmp_path / how))
        subprocess.run(start, env=environment(), check=True, timeout=TIMEOUT_S, stdout=sys.stderr)
        growths[how] = [int((tmp_path / f"{how}-{rank}").read_text(encoding="utf-8")) for rank in range(3)]
    assert min(growths["whole"]) > 0.95 * size
    # A share, a tensor's part as it is read, and what a group takes for a moment.
    assert max(growths["shard"]) < 0.6 * size
