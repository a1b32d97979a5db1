"""Whole runs on a small model: what they leave behind, how they stop, resume and refuse."""

import json
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from letheon.data.rows import Row, write_rows
from letheon.errors import DataError, DivergenceError, ModelError, OutputError, SettingsError
from letheon.memorizing.memorize import memorize
from letheon.memorizing.options import MemorizeOptions
from letheon.model.loading import load_model, save_model
from letheon.objective.catalogue import get_method
from letheon.settings import UnlearnSettings
from letheon.training.checkpoint import load_checkpoint, newest_checkpoint
from letheon.training.tracking import Silent
from letheon.unlearning.inputs import read_inputs
from letheon.unlearning.prepare import prepare
from letheon.unlearning.record import RunReport
from letheon.unlearning.resolve import resolve_settings
from letheon.unlearning.run import unlearn
from running import short_run
from small import tiny_model


@pytest.fixture
def given(
    tmp_path: Path, rows: list[Row], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    """Settings of a short run over files in the test's folder."""
    return {**short_run(tmp_path, rows, model, tokenizer), "trackers": "tensorboard", "keep": "last"}


def run(given: Mapping[str, Any], **changed: Any) -> RunReport:
    return unlearn(UnlearnSettings.of({**given, **changed}))


def weights(report: RunReport) -> dict[str, torch.Tensor]:
    return load_file(report.folder / "adapter" / "adapter_model.safetensors")


def events(folder: Path, name: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == name]


class After(Silent):
    """Does something after a number of steps."""

    def __init__(self, num_steps: int, action: Any) -> None:
        self.num_steps, self.action = num_steps, action

    def step(self, done: int, total: int, values: Mapping[str, float | None]) -> None:
        if done == self.num_steps:
            self.action()


def test_a_run_leaves_what_the_design_says(given: dict[str, Any]) -> None:
    report = run(given)
    folder = given["out"]
    assert report.reason == "finished"
    assert report.num_steps == 9
    kept = yaml.safe_load((folder / "run.yaml").read_text())
    assert (kept["beta"], kept["gamma"], kept["delta"], kept["npo"]) == (0.5, 1.0, 0.5, "token")
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["engine"]["path"] == "packed"
    assert len(provenance["forget"]["sha256"]) == 64
    steps = events(folder, "step")
    assert [line["step"] for line in steps] == list(range(1, 10))
    assert set(steps[0]["terms"]) == {"npo", "retain_nll", "retain_kl"}
    assert [line["epoch"] for line in events(folder, "interim")] == [1, 2, 3]
    assert events(folder, "end")[0]["reason"] == "finished"
    assert (folder / "adapter" / "adapter_config.json").is_file()


def test_the_merged_model_equals_the_adapter_on(given: dict[str, Any], model: PreTrainedModel) -> None:
    report = run(given)
    ids = torch.arange(5, 25)[None]
    merged = AutoModelForCausalLM.from_pretrained(report.model)
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(given["model"]), report.folder / "adapter")
    with torch.no_grad():
        assert torch.allclose(merged(ids).logits, adapted(ids).logits, atol=1e-5)
        assert (merged(ids).logits - model(ids).logits).abs().max() > 1e-3
    assert type(merged) is type(model)
    before = AutoModelForCausalLM.from_pretrained(given["model"]).state_dict()
    assert merged.state_dict().keys() == before.keys()


@pytest.mark.parametrize("architecture", ["gpt2", "gpt-neox", "llama"])
def test_merging_on_other_architectures(
    architecture: str, given: dict[str, Any], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    save_model(tiny_model(architecture, tokenizer), tokenizer, tmp_path / "other")
    report = run(given, model=str(tmp_path / "other"), epochs=1)
    ids = torch.arange(5, 25)[None]
    merged = AutoModelForCausalLM.from_pretrained(report.model)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "other")
    adapted = PeftModel.from_pretrained(base, report.folder / "adapter")
    with torch.no_grad():
        assert torch.allclose(merged(ids).logits, adapted(ids).logits, atol=1e-4)


def test_losses_fall_and_the_same_seed_gives_the_same_bytes(given: dict[str, Any], tmp_path: Path) -> None:
    first = run(given, epochs=6)
    second = run(given, epochs=6, out=tmp_path / "again")
    other = run(given, epochs=6, out=tmp_path / "other", seed=1)
    assert all(torch.equal(first_weight, weights(second)[name]) for name, first_weight in weights(first).items())
    assert any(not torch.equal(first_weight, weights(other)[name]) for name, first_weight in weights(first).items())
    losses = [line["terms"]["npo"] for line in events(first.folder, "step") if line["terms"]["npo"] is not None]
    assert losses[-1] < losses[0] - 0.5


@pytest.mark.parametrize("stop_after", [1, 4, 6])
def test_resume_after_sigterm_equals_the_uninterrupted_run(
    stop_after: int, given: dict[str, Any], tmp_path: Path
) -> None:
    whole = run(given, learning_rate_schedule="linear")
    settings = UnlearnSettings.of({**given, "out": tmp_path / "cut", "learning_rate_schedule": "linear"})
    cut = unlearn(settings, observer=After(stop_after, lambda: signal.raise_signal(signal.SIGTERM)))
    assert cut.exit_code == 143
    assert cut.num_steps == stop_after
    resumed = run(given, out=tmp_path / "cut", learning_rate_schedule="linear", resume=True)
    assert resumed.num_steps == whole.num_steps
    assert all(torch.equal(weight, weights(resumed)[name]) for name, weight in weights(whole).items())
    steps = [[(line["step"], line["loss"]) for line in events(r.folder, "step")] for r in (whole, resumed)]
    assert steps[0] == steps[1]


def test_resume_passes_over_a_damaged_checkpoint(given: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    whole = run(given)
    checkpoints = given["out"] / "checkpoints"
    newest = newest_checkpoint(checkpoints)
    assert newest is not None
    assert newest.position.step == 9
    damaged = checkpoints / "step-9" / "parameters.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\0")
    assert load_checkpoint(checkpoints / "step-9") is None
    assert "differs from its checksum" in caplog.text
    resumed = run(given, resume=True)
    assert all(torch.equal(weight, weights(resumed)[name]) for name, weight in weights(whole).items())


def test_resume_of_a_run_that_never_began_begins_it(given: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "early").mkdir()
    assert run(given, out=tmp_path / "early", epochs=1, resume=True).reason == "finished"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("x")
    with pytest.raises(OutputError, match="already holds files"):
        run(given, out=tmp_path / "other", resume=True)


def test_resume_refuses_other_settings(given: dict[str, Any]) -> None:
    run(given, epochs=1)
    with pytest.raises(SettingsError, match=r"learning_rate differ.*0.01 there, 0.5 here"):
        run(given, epochs=1, learning_rate=0.5, resume=True)


@pytest.mark.slow
def test_the_time_limit_ends_a_run_cleanly_with_its_best_state(given: dict[str, Any]) -> None:
    report = run(given, epochs=100_000, time_limit_s=3, keep="best")
    assert "time limit" in report.reason
    assert report.duration_s > 0.6 * 3  # what is kept back for the end is far from half
    assert report.duration_s < 10
    assert (report.model / "model.safetensors").is_file()
    assert report.kept.score == max(line["score"] for line in events(report.folder, "interim"))


def test_best_keeps_the_best_scored_state(given: dict[str, Any]) -> None:
    report = run(given, epochs=4, keep="best")
    scores = {line["step"]: line["score"] for line in events(report.folder, "interim")}
    assert report.kept.score == max(scores.values())
    saved = load_checkpoint(report.folder / "checkpoints" / f"step-{report.kept.step}")
    assert saved is not None
    kept = {name.replace(".default", ""): value for name, value in saved.parameters.items()}
    assert all(torch.equal(kept[name], value) for name, value in weights(report).items())


def test_a_loss_that_is_not_finite_names_step_and_rows_and_leaves_the_checkpoint(given: dict[str, Any]) -> None:
    with pytest.raises(DivergenceError, match=r"step \d+: .* became NaN or infinite; rows in that step: [fr]\d"):
        run(given, method="ga", learning_rate=1e30, epochs=50, checkpoint_epochs=50)
    assert not (given["out"] / "model").exists()


def test_a_large_step_in_pieces_gives_the_same_adapter(given: dict[str, Any], tmp_path: Path) -> None:
    whole = run(given, batch_size=6, epochs=2)
    pieces = run(given, batch_size=6, epochs=2, max_batch_tokens=30, out=tmp_path / "pieces")
    for name, weight in weights(whole).items():
        assert torch.allclose(weight, weights(pieces)[name], atol=1e-4)


def test_auto_template_takes_the_likeliest_and_says_so(given: dict[str, Any]) -> None:
    report = run(given, template="auto", epochs=1)
    found = report.provenance["form"]
    assert set(found["known"]) == {"plain", "pair", "joined", "neko", "question-answer", "inst"}
    assert found["template"] == min(found["known"], key=lambda name: found["known"][name]["answer_loss"])


def test_a_span_of_the_whole_text_trains_on_prompts_too(given: dict[str, Any], tmp_path: Path) -> None:
    answers, text = run(given, epochs=1), run(given, epochs=1, span="text", out=tmp_path / "text")
    assert any(not torch.equal(weight, weights(text)[name]) for name, weight in weights(answers).items())
    assert text.provenance["reference_store_bytes"] > answers.provenance["reference_store_bytes"]
    # The interim score looks at answers in both, and begins from the same model.
    assert [line["event"] for line in events(text.folder, "interim")] == ["interim"]


def test_bfloat16_runs_keep_a_float32_adapter(given: dict[str, Any]) -> None:
    report = run(given, dtype="bfloat16", epochs=1)
    assert {weight.dtype for weight in weights(report).values()} == {torch.float32}
    assert AutoModelForCausalLM.from_pretrained(report.model).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"method": "gd", "beta": 0.1}, SettingsError, "beta: method 'gd' does not take it"),
        ({"method": "low-rank-np"}, SettingsError, "did you mean 'low-rank-npo'"),
        ({"template": "joind"}, SettingsError, "did you mean 'joined'"),
        ({"model": "/nowhere/at/all"}, ModelError, "no such folder"),
        ({"forget": "nowhere.jsonl"}, DataError, "nowhere.jsonl"),
        ({"target_modules": "q_porj"}, ModelError, "no linear layer 'q_porj'.*did you mean 'q_proj'"),
        ({"max_length": 4}, DataError, r"forget.jsonl, line 1 .*at most 4 fit"),
    ],
)
def test_bad_input_is_refused(
    changed: dict[str, Any], error: type[Exception], message: str, given: dict[str, Any]
) -> None:
    with pytest.raises(error, match=message):
        run(given, **changed)


def test_overlap_of_forget_and_retain_is_refused(given: dict[str, Any], rows: list[Row], tmp_path: Path) -> None:
    write_rows([rows[0], rows[4]], tmp_path / "overlap.jsonl")
    with pytest.raises(DataError, match=r"overlap.jsonl, line 1"):
        run(given, retain=str(tmp_path / "overlap.jsonl"))


def test_occupied_and_impossible_folders_are_refused(given: dict[str, Any], tmp_path: Path) -> None:
    (given["out"]).mkdir()
    (given["out"] / "evaluation").mkdir()
    run(given, epochs=1)
    with pytest.raises(OutputError, match="already holds files"):
        run(given)
    with pytest.raises(OutputError, match="inside the checkpoint"):
        run(given, out=tmp_path / "target" / "run")
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="found a file"):
        run(given, out=tmp_path / "file")


def test_weights_that_are_not_finite_are_refused(
    given: dict[str, Any], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    with torch.no_grad():
        next(model.parameters())[5:] = float("nan")
    save_model(model, tokenizer, tmp_path / "broken")
    with pytest.raises(ModelError, match="are not all finite"):
        run(given, model=str(tmp_path / "broken"))


def test_pickled_and_incomplete_checkpoints_are_refused(given: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    folder.mkdir()
    with pytest.raises(ModelError, match=r"no config\.json"):
        run(given, model=str(folder))
    (folder / "config.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin, a pickle, which Letheon never reads"):
        run(given, model=str(folder))


def test_retain_rows_end_as_the_model_ends_them(
    given: dict[str, Any], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[Row], tmp_path: Path
) -> None:
    options = MemorizeOptions(learning_rate=5e-3, warmup_steps=5, cooldown_steps=10, check_every=10, max_steps=400)
    memorize(model, tokenizer, rows=rows, options=options)
    save_model(model, tokenizer, tmp_path / "knows")
    settings = UnlearnSettings.of({**given, "model": str(tmp_path / "knows")})
    found = {}
    for choice in ("auto", "retain", "none"):
        chosen = resolve_settings(settings.model_copy(update={"end_of_sequence": choice}))
        loaded = load_model(chosen.model)
        inputs = read_inputs(chosen)
        problem = prepare(
            loaded, inputs, chosen, method=get_method(chosen.method), cache_dir=None, observer=Silent()
        ).problem
        found[choice] = [sequence.input_ids[-1] == tokenizer.eos_token_id for sequence in problem.sequences]
    assert found["retain"] == found["auto"] == [False] * 3 + [True] * 3
    assert found["none"] == [False] * 6
    # A random model ends nothing, so that nothing is added.
    kept = run(given, epochs=1)
    assert "which is not trained" in str(events(kept.folder, "note"))


def test_a_run_says_that_few_forget_rows_come_several_times_an_epoch(given: dict[str, Any], rows: list[Row]) -> None:
    write_rows(rows[:1], Path(given["forget"]))
    write_rows(rows[1:], Path(given["retain"]))
    for rate, comes in (("auto", True), (1e-3, False)):
        done = run({**given, "learning_rate": rate, "out": given["out"] / str(rate)}, epochs=1, general=None)
        said = "each forget row comes 2 times an epoch, because there are many more retain rows"
        assert (said in str(events(done.folder, "note"))) is comes
