"""The submission interface: a complete model in output_path at any time, within the hour."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from letheon import semeval
from letheon.data.rows import Row, write_rows
from letheon.errors import DataError, DivergenceError, OutputError
from letheon.model.loading import LoadedModel, save_model
from letheon.unlearning import run as training

QUICK = {"learning_rate": 1e-2, "epochs": 4, "dtype": "float32", "target_modules": ("q_proj", "v_proj")}


@pytest.fixture
def folders(
    tmp_path: Path, rows: list[Row], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    save_model(model, tokenizer, tmp_path / "model")
    for name, part in (("forget", rows[:3]), ("retain", rows[3:])):
        (tmp_path / name).mkdir()
        write_rows(part, tmp_path / name / f"{name}.jsonl")
    return {
        "model_path": tmp_path / "model",
        "output_path": tmp_path / "out",
        "forget_dir": tmp_path / "forget",
        "retain_dir": tmp_path / "retain",
    }


def test_leaves_an_unlearned_model_and_nothing_beside_it(folders: dict[str, Any]) -> None:
    before = sorted(path.name for path in folders["output_path"].parent.iterdir())
    assert semeval.unlearn(**folders, overrides=QUICK) == folders["output_path"]
    AutoTokenizer.from_pretrained(folders["output_path"])
    unlearned = AutoModelForCausalLM.from_pretrained(folders["output_path"]).state_dict()
    original = AutoModelForCausalLM.from_pretrained(folders["model_path"]).state_dict()
    assert any(not torch.equal(unlearned[name], original[name]) for name in original)
    assert sorted(path.name for path in folders["output_path"].parent.iterdir()) == sorted([*before, "out"])


def test_a_complete_model_lies_there_from_the_beginning_and_after_each_best(
    folders: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[dict[str, torch.Tensor]] = []

    def watching(settings: Any, *, on_best: Any) -> Any:
        found.append(load_file(folders["output_path"] / "model.safetensors"))

        def watched(loaded: LoadedModel, state: dict[str, Any]) -> None:
            on_best(loaded, state)
            found.append(load_file(folders["output_path"] / "model.safetensors"))
            AutoModelForCausalLM.from_pretrained(folders["output_path"])

        return training.unlearn(settings, on_best=watched)

    monkeypatch.setattr("letheon.semeval.run", watching)
    semeval.unlearn(**folders, overrides=QUICK)
    original = load_file(folders["model_path"] / "model.safetensors")
    assert all(torch.equal(found[0][name], original[name]) for name in original)
    assert len(found) >= 2


def test_a_run_that_fails_leaves_the_last_complete_model(folders: dict[str, Any]) -> None:
    with pytest.raises(DivergenceError):
        semeval.unlearn(**folders, overrides={**QUICK, "learning_rate": 1e30, "epochs": 60, "method": "ga",
                                              "beta": None, "gamma": None, "delta": None})  # fmt: skip
    AutoModelForCausalLM.from_pretrained(folders["output_path"])


def test_the_time_limit_holds(folders: dict[str, Any]) -> None:
    semeval.unlearn(**folders, time_limit_s=1.0, overrides={**QUICK, "epochs": 100_000})
    AutoModelForCausalLM.from_pretrained(folders["output_path"])


def test_occupied_outputs_and_empty_directories_are_refused(folders: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty"):
        semeval.unlearn(**{**folders, "forget_dir": tmp_path / "empty"})
    folders["output_path"].mkdir()
    (folders["output_path"] / "note.txt").write_text("mine")
    with pytest.raises(OutputError, match="already holds files"):
        semeval.unlearn(**folders)
    assert (folders["output_path"] / "note.txt").read_text() == "mine"
