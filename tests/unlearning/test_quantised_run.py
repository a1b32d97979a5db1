"""Whole runs over quantised weights: what is saved, what merging changed, the dial, and going on."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from commands import finish, start
from letheon import unlearn_population
from letheon.api import dial, unlearn
from letheon.data.rows import Row
from letheon.data.sequences import tokenise_all
from letheon.errors import MissingExtraError
from letheon.evaluation.registry import read_results
from letheon.model.adapters import LoraAdapter
from letheon.model.fingerprint import fingerprint
from letheon.model.loading import load_model
from letheon.report.evidence import result_facts
from letheon.report.files import read_run
from letheon.settings import DialSettings, UnlearnSettings
from letheon.storage.yaml_text import parse_yaml
from letheon.unlearning.prepare import adapt
from letheon.unlearning.record import RunReport
from letheon.unlearning.resolve import resolve_settings
from running import After, as_flags, knowing_model, model_of, run, same, short_run

KINDS = ("nf4", pytest.param("int8", marks=pytest.mark.slow))


@pytest.fixture
def given(tmp_path: Path, rows: list[Row], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Settings of a short run over quantised weights of a bfloat16 model that knows its rows, products in float32."""
    pytest.importorskip("bitsandbytes")
    model = knowing_model(tokenizer, rows)
    model.to(torch.bfloat16)  # type: ignore[arg-type]  # transformers annotates it so
    return {**short_run(tmp_path, rows, model, tokenizer), "keep": "last", "dtype": "widened", "quantise": "nf4"}


def log_probs_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[Row]) -> list[Tensor]:
    """The log-probabilities of each row's answer tokens, by the model's own logits."""
    found = []
    for one in tokenise_all(rows, tokenizer, template="joined", max_length=256):
        ids = torch.tensor([one.input_ids])
        with torch.no_grad():
            logits = model(ids).logits.float()[0, :-1].log_softmax(-1)
        found.append(logits.gather(1, ids[0, 1:, None])[one.answer_start - 1 :, 0])
    return found


def trained(report: RunReport, given: dict[str, Any]) -> LoraAdapter:
    """The quantised model of a run with the adapter that the run left."""
    settings = resolve_settings(UnlearnSettings.of(given))
    loaded = load_model(given["model"], dtype=given["dtype"], quantise=given["quantise"], device="cpu")
    adapter = adapt(loaded.model, settings)
    assert isinstance(adapter, LoraAdapter)
    saved = load_file(report.folder / "adapter" / "adapter_model.safetensors")
    adapter.load_state({name: saved[name.replace(".default.", ".")] for name in adapter.trained()})
    return adapter


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_says_what_merging_into_the_dequantised_weights_changed(
    given: dict[str, Any], rows: list[Row], tokenizer: PreTrainedTokenizerBase, kind: str
) -> None:
    given = {**given, "quantise": kind}
    report = run(given)
    merging = report.provenance["result"]["merging"]
    quantised = log_probs_of(trained(report, given).model, tokenizer, rows)
    saved = log_probs_of(load_model(str(report.model), dtype="widened", device="cpu").model, tokenizer, rows)
    for side, chosen in (("forget", slice(3)), ("retain", slice(3, None))):
        differences = (torch.cat(quantised[chosen]) - torch.cat(saved[chosen])).abs()
        found = merging["log_prob_shift"][side]
        assert found["mean"] == pytest.approx(float(differences.mean()), abs=1e-4)
        assert found["largest"] == pytest.approx(float(differences.max()), abs=1e-4)
        assert found["largest"] > 1e-3  # the weights are rounded to bfloat16
    assert merging["trained"]["score"] == report.kept.score
    assert report.provenance["precision"]["quantised"] == kind
    text = (report.folder / "run.yaml").read_text()
    assert f"#   {merging['sentence']}" in text
    assert parse_yaml(text)["quantise"] == kind
    assert f"({kind}, saved in bfloat16)" in merging["sentence"]
    assert ("merging", merging["sentence"]) in result_facts(read_run(report.folder))
    assert "quantization" not in (report.model / "config.json").read_text()


@pytest.mark.slow
def test_merging_changes_nothing_but_rounding_in_float32(given: dict[str, Any]) -> None:
    shifts = run({**given, "dtype": "float32"}).provenance["result"]["merging"]["log_prob_shift"]
    assert 0 < max(one["largest"] for one in shifts.values()) < 1e-4


@pytest.mark.slow
def test_the_scores_after_are_those_of_the_saved_model(given: dict[str, Any]) -> None:
    report = unlearn(UnlearnSettings.of({**given, "evaluate": True}))
    assert report.unscored is None
    after = read_results(given["out"] / "evaluation" / "after" / "results.json")
    saved = load_model(str(report.model), dtype="widened", device="cpu")
    assert after.provenance["read"]["weights_sha256"] == fingerprint(saved.model)
    before = read_results(given["out"] / "evaluation" / "before" / "results.json")
    quantised = load_model(given["model"], dtype="widened", quantise="nf4", device="cpu")
    assert before.provenance["read"]["weights_sha256"] == fingerprint(quantised.model)


@pytest.mark.slow
def test_a_run_that_was_ended_goes_on_over_the_same_quantised_weights(given: dict[str, Any], tmp_path: Path) -> None:
    whole = run({**given, "out": tmp_path / "whole"})
    ended = unlearn(UnlearnSettings.of(given), observer=After(5, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    assert ended.exit_code
    assert "merging" not in ended.provenance["result"]
    resumed = run({**given, "resume": True})
    assert same(model_of(resumed), model_of(whole))
    assert resumed.provenance["result"]["merging"] == whole.provenance["result"]["merging"]


@pytest.mark.slow
def test_the_dial_works_on_quantised_weights_and_says_anew_what_merging_changed(given: dict[str, Any]) -> None:
    report = run(given)
    before = report.provenance["result"]["merging"]
    dialled = dial(given["out"], DialSettings.of({"dial": "forgotten"}))
    assert dialled is not None
    found = json.loads((given["out"] / "provenance.json").read_text())["result"]
    assert found["merging"]["merged"] != before["merged"]
    assert found["merging"]["sentence"] in (given["out"] / "run.yaml").read_text()
    dial(given["out"], DialSettings.of({"dial": "none"}))
    assert "merging" not in json.loads((given["out"] / "provenance.json").read_text())["result"]


@pytest.mark.slow
def test_a_population_comes_to_what_its_runs_come_to_alone(given: dict[str, Any], tmp_path: Path) -> None:
    given = {**given, "dtype": "float32"}
    runs = [{**given, "seed": seed, "out": tmp_path / f"together{seed}"} for seed in (0, 1)]
    together = unlearn_population([UnlearnSettings.of(one) for one in runs])
    for one, found in zip(runs, together, strict=True):
        assert isinstance(found, RunReport)
        alone = model_of(run({**one, "out": tmp_path / f"alone{one['seed']}"}))
        for name, value in model_of(found).items():
            assert torch.allclose(value, alone[name], atol=2e-4), name


@pytest.mark.slow
def test_the_command_says_what_it_did_and_a_plan_what_it_takes(given: dict[str, Any]) -> None:
    flags = as_flags(given)
    code, _, said = finish(start("unlearn", *flags))
    assert code == 0, said
    assert "linear layers quantised (nf4) and dequantised for each product" in said
    assert "merging the adapter into the dequantised weights (nf4, saved in bfloat16) changed" in said
    code, planned, _ = finish(start("unlearn", "--plan", *flags))
    assert code == 0
    assert "weights in nf4 and 16 bits" in planned
    code, _, refused = finish(start("unlearn", *as_flags(given, "model", "forget", "retain", "quantise"), "--out",
                                    given["out"].parent / "other", "--adapt", "weights"))  # fmt: skip
    assert code
    assert refused.splitlines()[-1].startswith("letheon: error: adapt: quantised weights cannot be trained themselves")


def test_without_bitsandbytes_the_error_says_what_to_install(
    tmp_path: Path,
    rows: list[Row],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = short_run(tmp_path, rows, model, tokenizer)
    monkeypatch.setattr("letheon.model.quantised.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'letheon\[quantised\]'"):
        run({**given, "quantise": "nf4"})
    assert not (tmp_path / "run").exists()
