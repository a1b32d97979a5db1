"""The dial of whole runs: what is scaled and stored, resumed, dialled again and undone."""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

import letheon
from letheon import RedialSettings, Row, UnlearnSettings
from letheon.errors import LetheonError, OutputError, SettingsError
from letheon.report.files import read_run
from letheon.storage.fingerprints import hash_checkpoint
from letheon.training.tracking import Silent
from letheon.unlearning.dial.measure import MOST_DOCUMENTS, split_in_halves
from letheon.unlearning.dial.search import MOST_SCALES, Choice, Point
from letheon.unlearning.inputs import read_inputs
from letheon.unlearning.resolve import resolve_settings
from running import events, knowing_model, run, same, short_run

UNSEEN = [
    "The baker of Lund sells rye bread on Fridays.",
    "A heron stood in the shallow water until noon.",
    "Trains to the coast leave twice an hour.",
    "Nobody remembered who had painted the door green.",
    "The committee met again to speak about the bridge.",
]
BUDGETS = {"dial_forget_budget": 1.0, "dial_retain_budget": 1.0}
"""That bind nowhere: a small model in a short run may lose much."""
UNDIALLED = {"dial": "none", "dial_forget_budget": 0.1, "dial_retain_budget": 0.05}
"""Without a dial, and so without budgets."""


@pytest.fixture
def given(tmp_path: Path, rows: list[Row], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Settings of a short run on a model that knows the rows, and documents that it never saw."""
    holdout = tmp_path / "unseen.jsonl"
    holdout.write_text("".join(json.dumps({"document": text}) + "\n" for text in UNSEEN))
    made = short_run(tmp_path, rows, knowing_model(tokenizer, rows), tokenizer)
    return {**made, "epochs": 6, "keep": "last", "checkpoint_epochs": 3, "holdout": holdout, **BUDGETS}


def fixed_scale(monkeypatch: pytest.MonkeyPatch, scale: float) -> None:
    """Have the search choose this scale."""

    def choose(measure: Any, *_: Any, **__: Any) -> Choice:
        points = [measure(s) for s in (1.0, 0.0, scale)]
        return Choice.among(points, points[-1], "")

    monkeypatch.setattr("letheon.unlearning.dial.turn.choose_by_membership", choose)
    monkeypatch.setattr("letheon.unlearning.dial.turn.choose_by_recall", choose)


def result_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "provenance.json").read_text())["result"]
    return found


def settings_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((folder / "run.yaml").read_text())
    return found


def files_of(folder: Path) -> dict[str, bytes]:
    """Model and adapter by file, to the byte; the cards, which say how long it took, are left out."""
    paths = [path for part in ("model", "adapter") for path in sorted((folder / part).glob("*"))]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths if path.name != "README.md"}


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(torch.arange(5, 25)[None]).logits
    return found


def redial(folder: Path, **asked: Any) -> Any:
    return letheon.dial(folder, RedialSettings.of(asked))


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"holdout": "d.jsonl"}, "membership"),
        ({"holdout": "d.jsonl", "dial": "none"}, "none"),
        ({"holdout": "d.jsonl", "dial": "forgotten"}, "forgotten"),
        ({"holdout": "d.jsonl", "dora": True}, "none"),
        ({}, "none"),
        ({"dial": "forgotten"}, "forgotten"),
    ],
)
def test_the_dial_is_on_where_there_are_documents_to_choose_by(asked: dict[str, Any], expected: str) -> None:
    settings = UnlearnSettings.of({"model": "m", "forget": "f", "retain": "r", "out": "o", **asked})
    resolved = resolve_settings(settings)
    assert resolved.dial == expected
    assert resolve_settings(resolved) == resolved


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"dial": "membership"}, "dial: 'membership' chooses the scale by unseen documents; give them by --holdout"),
        ({"dial": "forgotten", "dora": True}, "dial: 'forgotten' scales a low-rank product, but --dora also"),
        ({"dial_retain_budget": 0.1}, "dial_retain_budget: has no effect without --dial membership"),
        ({"dial": "forgotten", "dial_text_budget": 0.1}, "dial_text_budget: has no effect without --dial membership"),
    ],
)
def test_a_dial_that_cannot_be_is_refused(asked: dict[str, Any], message: str) -> None:
    settings = UnlearnSettings.of({"model": "m", "forget": "f", "retain": "r", "out": "o", **asked})
    with pytest.raises(SettingsError, match=message):
        resolve_settings(settings)


def test_documents_are_split_by_turns_and_states_are_scored_by_those_to_choose_by(given: dict[str, Any]) -> None:
    assert split_in_halves(["a", "b", "c", "d", "e"]) == (["a", "c", "e"], ["b", "d"])
    many = [str(n) for n in range(3 * MOST_DOCUMENTS)]
    assert [len(half) for half in split_in_halves(many)] == [MOST_DOCUMENTS, MOST_DOCUMENTS]
    inputs = read_inputs(resolve_settings(UnlearnSettings.of(given)))
    texts = [inputs.tokenizer.decode(list(s.input_ids)) for s in inputs.holdout]
    assert texts == UNSEEN[0::2]
    assert [inputs.tokenizer.decode(list(s.input_ids)) for s in inputs.halves.reported_on] == UNSEEN[1::2]


def test_a_run_says_how_its_scale_was_chosen(given: dict[str, Any]) -> None:
    report = run(given)
    folder, result = report.folder, result_of(report.folder)
    dial = result["dial"]
    assert dial["dial"] == settings_of(folder)["dial"] == "membership"
    assert f"#   scale: {dial['scale']:g}\n" in (folder / "run.yaml").read_text()
    scales = [point["scale"] for point in dial["points"]]
    assert scales == sorted(set(scales))
    assert {0.0, dial["scale"], 1.0} <= set(scales)
    assert len(scales) <= MOST_SCALES
    chosen = dial["points"][scales.index(dial["scale"])]
    assert chosen["membership"] == max(point["membership"] for point in dial["points"][1:])
    assert result["kept"] == {"step": 18, "epoch": 6.0} | {
        name: value for name, value in chosen.items() if name not in ("scale", "auc")
    }
    assert dial["reported"][0]["scale"] == dial["scale"]
    assert dial["reported"][0]["num_documents"] == 2
    assert [event["scale"] for event in events(folder, "dial")] == [dial["scale"]]
    assert [event["scale"] for event in events(folder, "dial_point")] == scales
    # Scale 0 is the model before and scale 1 the state that the last scoring saw, to the rounding of another batch.
    before, trained = events(folder, "start")[0]["before"], events(folder, "interim")[-1]
    assert dial["points"][0]["retain_loss"] == before["retain_loss"]
    assert dial["points"][-1]["retain_loss"] == trained["retain_loss"]
    assert dial["trained"] == {name: value for name, value in trained.items() if name != "event"}
    assert [n["message"] for n in events(folder, "note") if "the dial chooses by 3 of the holdout" in n["message"]]


def test_the_adapter_and_the_model_are_scaled_and_peft_loads_it_as_it_is(
    given: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    full = run(given, **UNDIALLED, out=tmp_path / "full")
    fixed_scale(monkeypatch, 0.37)
    report = run(given)
    saved = [load_file(r.folder / "adapter" / "adapter_model.safetensors") for r in (full, report)]
    assert same(saved[0], saved[1])  # A and B are as trained
    config = json.loads((report.folder / "adapter" / "adapter_config.json").read_text())
    assert config["lora_alpha"] == 5.0 * 0.37
    base = load_file(Path(given["model"]) / "model.safetensors")
    models = [load_file(r.model / "model.safetensors") for r in (full, report)]
    moved = [name for name in base if not torch.equal(base[name], models[0][name])]
    assert len(moved) == 14  # all linear layers of two decoder layers
    for name in moved:
        expected = base[name] + 0.37 * (models[0][name] - base[name])
        torch.testing.assert_close(models[1][name], expected, rtol=0, atol=1e-6)
    plain = AutoModelForCausalLM.from_pretrained(given["model"])
    adapted = PeftModel.from_pretrained(plain, report.folder / "adapter")
    merged = AutoModelForCausalLM.from_pretrained(report.model)
    torch.testing.assert_close(logits_of(adapted), logits_of(merged), rtol=0, atol=1e-5)
    assert (logits_of(merged) - logits_of(AutoModelForCausalLM.from_pretrained(full.model))).abs().max() > 1e-3


@pytest.mark.parametrize("more", [{}, {"rslora": True, "alpha": 7, "rank": 3}], ids=["plain", "rslora"])
def test_what_was_measured_at_the_scale_is_what_the_written_model_gives(
    more: dict[str, Any], given: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fixed_scale(monkeypatch, 0.6)
    report = run(given, **more)
    kept = result_of(report.folder)["kept"]
    again = run({**given, **more, "model": str(report.model), "epochs": 1}, out=tmp_path / "again")
    before = events(again.folder, "start")[0]["before"]
    for name in ("forget_recall", "retain_recall", "retain_loss", "membership", "text_loss"):
        assert before[name] == pytest.approx(kept[name], abs=1e-5), name


def test_weights_are_scaled_along_their_difference(
    given: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    weights = {"adapt": "weights", "learning_rate": 1e-3}
    full = run(given, **weights, **UNDIALLED, out=tmp_path / "full")
    fixed_scale(monkeypatch, 0.25)
    report = run(given, **weights)
    base = load_file(Path(given["model"]) / "model.safetensors")
    models = [load_file(r.model / "model.safetensors") for r in (full, report)]
    for name, weight in base.items():
        expected = weight + 0.25 * (models[0][name] - weight)
        torch.testing.assert_close(models[1][name], expected, rtol=0, atol=1e-6)
    assert not same(models[0], models[1])
    assert not (report.folder / "adapter").exists()


@pytest.mark.parametrize(
    "more",
    [{}, {"adapt": "weights", "learning_rate": 1e-3}, {"method": "npo-ties"}, {"method": "task-vector"}],
    ids=["lora", "weights", "merged", "negated"],
)
@pytest.mark.slow
def test_undoing_the_dial_gives_the_bytes_of_a_run_without_one(
    more: dict[str, Any], given: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fixed_scale(monkeypatch, 0.37)
    full = letheon.unlearn(UnlearnSettings.of({**given, **more, **UNDIALLED, "out": tmp_path / "full"}))
    report = letheon.unlearn(UnlearnSettings.of({**given, **more}))
    dialled = files_of(report.folder)
    assert dialled != files_of(full.folder)
    assert redial(report.folder, dial="none") is None
    assert files_of(report.folder) == files_of(full.folder)
    first, second = result_of(report.folder), result_of(full.folder)
    assert "dial" not in first
    assert all(first[name] == second[name] for name in ("reason", "kept", "model_sha256", "adapter_sha256"))
    assert {**settings_of(report.folder), "out": ""} == {**settings_of(full.folder), "out": ""}
    assert "that the dial chose" not in (report.folder / "run.yaml").read_text()
    # Once more, and it is what the run itself made of it.
    redial(report.folder, **BUDGETS)
    assert files_of(report.folder) == dialled
    assert not (report.folder / "staged").exists()


@pytest.mark.slow
@pytest.mark.parametrize("instead", [None, "refusal", "auto"])
def test_dialling_again_is_what_the_run_would_have_done(
    given: dict[str, Any], tmp_path: Path, instead: str | None
) -> None:
    report = run(given, instead=instead)
    later = run(given, instead=instead, **UNDIALLED, out=tmp_path / "later")
    assert "fluency" in later.provenance
    redial(later.folder, **BUDGETS)
    assert "fluency" not in json.loads((later.folder / "provenance.json").read_text())  # of the old result's answers
    points = result_of(later.folder)["dial"]["points"]
    assert [point["instead_recall"] is not None for point in points] == [instead == "refusal"] * len(points)
    first, second = result_of(report.folder)["dial"], result_of(later.folder)["dial"]
    first.pop("duration_s"), second.pop("duration_s")
    assert first == second
    assert files_of(report.folder)["model/model.safetensors"] == files_of(later.folder)["model/model.safetensors"]


def test_dialling_by_recall_needs_no_documents(given: dict[str, Any]) -> None:
    plain = {name: value for name, value in given.items() if name not in ("holdout", *BUDGETS)}
    report = run(plain, dial="forgotten")
    dial = result_of(report.folder)["dial"]
    level = dial["points"][-1]["forget_recall"] + 0.01
    assert all(p["forget_recall"] <= level for p in dial["points"] if p["scale"] >= dial["scale"])
    assert dial["scale"] < 1
    assert (dial["reported"], dial["points"][0]["auc"]) == ([], None)
    assert redial(report.folder).dial == "forgotten"


def test_evaluations_made_before_a_dial_no_longer_count(given: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    report = run(given, **UNDIALLED)
    asked = {name: given[name] for name in ("forget", "retain")} | {"max_new_tokens": 2, "model": str(report.model)}
    letheon.evaluate(letheon.EvaluateSettings.of({**asked, "out": report.folder / "evaluation" / "after"}))
    assert read_run(report.folder).after is not None
    fixed_scale(monkeypatch, 0.5)
    redial(report.folder, dial="forgotten")
    found = read_run(report.folder)
    assert found.after is None
    assert "it scored another model" in found.pairings[0].differences[0]
    redial(report.folder, dial="none")
    assert read_run(report.folder).after is not None


def test_fingerprints_are_those_of_the_files(given: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    fixed_scale(monkeypatch, 0.5)
    report = run(given)
    redial(report.folder, dial="forgotten")
    result = result_of(report.folder)
    for part in ("model", "adapter"):
        assert result[f"{part}_sha256"] == hash_checkpoint(report.folder / part)


class _Asked(Silent):
    """Sends this process a signal when the dial is about to measure its third scale."""

    def stage(self, name: str, done: int, total: int) -> None:
        if (name, done) == ("choosing the scale", 2):
            signal.raise_signal(signal.SIGTERM)


@pytest.mark.slow
def test_a_run_that_is_asked_to_end_while_it_is_dialled_is_dialled_when_it_goes_on(
    given: dict[str, Any], tmp_path: Path
) -> None:
    whole = run(given, out=tmp_path / "whole")
    ended = letheon.unlearn(UnlearnSettings.of(given), observer=_Asked())
    assert ended.exit_code == 143
    assert "dial" not in result_of(ended.folder)
    assert 'lora_alpha": 5.0' in (ended.folder / "adapter" / "adapter_config.json").read_text()
    with pytest.raises(OutputError, match="expected a finished run, but it was ended before it was done"):
        redial(ended.folder)
    resumed = run(given, resume=True)
    assert result_of(resumed.folder)["dial"]["points"] == result_of(whole.folder)["dial"]["points"]
    assert same(load_file(whole.model / "model.safetensors"), load_file(resumed.model / "model.safetensors"))


@pytest.mark.slow
def test_a_finished_run_may_be_resumed_with_another_dial(
    given: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fixed_scale(monkeypatch, 0.5)
    report = run(given)
    dialled = files_of(report.folder)
    undialled = {**given, **UNDIALLED}
    run(undialled, resume=True)
    full = run(undialled, out=tmp_path / "full")
    assert files_of(report.folder)["model/model.safetensors"] == files_of(full.folder)["model/model.safetensors"]
    run(given, resume=True)
    assert files_of(report.folder) == dialled


def test_a_time_limit_leaves_time_for_the_dial(given: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("letheon.training.stopping.Pace.scoring_s", lambda pace, num_tokens: 10.0)
    report = run(given, time_limit_s=50)  # seven scorings, 70 s, are kept back
    assert report.reason == "time limit of 50 s"
    assert report.num_steps == 0 or report.kept.step == report.num_steps


@pytest.mark.slow
def test_each_run_of_a_population_has_its_own_dial(given: dict[str, Any], tmp_path: Path) -> None:
    def settings(name: str, **more: Any) -> UnlearnSettings:
        return UnlearnSettings.of({**given, "out": tmp_path / name, **more})

    together = letheon.unlearn_population([
        settings("a"), settings("b", seed=1, rank=3), settings("c", **UNDIALLED),
    ])  # fmt: skip
    alone = [letheon.unlearn(settings("a1")), letheon.unlearn(settings("b1", seed=1, rank=3))]
    for one, other in zip(together, alone, strict=False):
        first, second = result_of(one.folder), result_of(other.folder)
        assert first["dial"]["scale"] == pytest.approx(second["dial"]["scale"], abs=0.02)
        config = json.loads((one.folder / "adapter" / "adapter_config.json").read_text())
        assert config["lora_alpha"] == 5.0 * first["dial"]["scale"]
        merged = AutoModelForCausalLM.from_pretrained(one.folder / "model")
        base = AutoModelForCausalLM.from_pretrained(given["model"])
        adapted = PeftModel.from_pretrained(base, one.folder / "adapter")
        torch.testing.assert_close(logits_of(adapted), logits_of(merged), rtol=0, atol=1e-5)
    assert "dial" not in result_of(tmp_path / "c")
    assert '"lora_alpha": 5.0' in (tmp_path / "c" / "adapter" / "adapter_config.json").read_text()


BROKEN: list[tuple[Callable[[Path], object], str]] = [
    (lambda folder: shutil.rmtree(folder / "run" / "adapter"), "expected the adapter that the run left"),
    (lambda folder: (folder / "run" / "provenance.json").unlink(), "expected a finished run, but it was ended before"),
    (lambda folder: (folder / "run" / "run.yaml").unlink(), "expected the folder of a finished run, found no run.yaml"),
    (lambda folder: (folder / "run" / "run.yaml").write_text("a: [\n"), "run.yaml: expected a mapping of names to val"),
    (lambda folder: (folder / "unseen.jsonl").write_text('{"document": "Another."}\n'), "the holdout documents"),
    (lambda folder: replace_in(folder / "retain.jsonl", "sea", "moon"), "retain"),
]


def replace_in(path: Path, old: str, new: str) -> None:
    path.write_text(path.read_text().replace(old, new))


def test_a_run_that_is_not_what_it_was_is_left_alone(given: dict[str, Any], tmp_path: Path) -> None:
    report = run(given, **UNDIALLED)
    whole = shutil.copytree(tmp_path, tmp_path.with_name("whole"))
    for break_it, message in BROKEN:
        shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
        break_it(tmp_path)
        before = files_of(report.folder)
        with pytest.raises(LetheonError, match=message):
            redial(report.folder)
        assert files_of(report.folder) == before
        assert not (report.folder / "staged").exists()


def test_weights_whose_checkpoints_are_gone_cannot_be_dialled(given: dict[str, Any]) -> None:
    report = run(given, adapt="weights", learning_rate=1e-3, **UNDIALLED)
    shutil.rmtree(report.folder / "checkpoints")
    with pytest.raises(OutputError, match="the weights as they were trained are in this checkpoint"):
        redial(report.folder)


def test_an_adapter_is_dialled_without_checkpoints(given: dict[str, Any]) -> None:
    report = run(given)
    dialled = files_of(report.folder)
    shutil.rmtree(report.folder / "checkpoints")
    redial(report.folder, dial="none")
    redial(report.folder, **BUDGETS)
    assert files_of(report.folder)["model/model.safetensors"] == dialled["model/model.safetensors"]


def test_a_point_of_a_broken_model_is_not_chosen() -> None:
    values = {"forget_recall": 0.0, "retain_recall": 1.0, "text_loss": float("nan")}
    assert Point(0.5, values, None).membership == 0.0
