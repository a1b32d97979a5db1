"""The whole of TOFU in four commands: target, model that never knew, unlearn, score; and a study."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from letheon.cli.main import cli
from letheon.data.rows import Row, Rows, Turn, read_rows
from letheon.data.sequences import tokenise
from letheon.data.system_message import SYSTEM, under_system
from letheon.errors import DataError, SettingsError
from letheon.evaluation.registry import read_results
from letheon.model.loading import save_model
from letheon.report.files import read_run
from letheon.settings import MemorizeSettings, UnlearnSettings
from letheon.storage.yaml_text import parse_yaml
from letheon.studies.spec import StudySettings
from letheon.unlearning.inputs import read_inputs
from letheon.unlearning.resolve import resolve_settings
from small import tiny_model
from tofu_files import write_tofu


def letheon(*command: Path | str) -> str:
    done = CliRunner().invoke(cli, [str(part) for part in command], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data set, where no --data is needed."""
    monkeypatch.setenv("LETHEON_DATA", str(tmp_path / "data"))
    return write_tofu(tmp_path / "data" / "tofu")


def learn(out: Path, *options: str) -> dict[str, Any]:
    """Memorise TOFU's rows a little; return the settings that were used."""
    small = ("--width", "32", "--num-layers", "2", "--vocab-size", "400", "--max-steps", "60", "--lr", "5e-3")
    letheon("memorize", "--suite", "tofu", "--out", out, "--architecture", "llama", *small, *options)
    found: dict[str, Any] = json.loads((out / "memorize.json").read_text())["settings"]
    return found


@pytest.mark.slow
def test_four_commands(tmp_path: Path, folder: Path) -> None:
    assert learn(tmp_path / "target")["rows"] == [str(folder / "full.jsonl")]
    assert learn(tmp_path / "never", "--split", "forget10")["rows"] == [str(folder / "retain90.jsonl")]
    letheon("evaluate", "--suite", "tofu", "--model", tmp_path / "never", "--out", tmp_path / "never-scores")
    run = tmp_path / "run"
    output = letheon(
        *("unlearn", "--suite", "tofu", "--split", "forget10", "--model", tmp_path / "target", "--out", run),
        *("--never-results", tmp_path / "never-scores" / "results.json", "--epochs", "1", "--trackers", ""),
    )
    assert "Forget quality" in output
    for side in ("before", "after"):
        results = read_results(run / "evaluation" / side / "results.json")
        assert results.suite == "tofu"
        assert results.scores.value("forget_quality") is not None
        assert (run / "evaluation" / side / "TOFU_SUMMARY.json").is_file()
    assert [pairing.differences for pairing in read_run(run).pairings] == [(), ()]
    assert "Model utility" in (run / "report.html").read_text("utf-8")
    used = parse_yaml((run / "run.yaml").read_text("utf-8"))
    assert (used["template"], used["holdout"]) == ("question-answer", str(folder / "holdout10.jsonl"))


def test_a_run_takes_form_and_holdout_from_the_suite(
    tmp_path: Path, folder: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    save_model(tiny_model("llama", tokenizer), tokenizer, tmp_path / "model")
    given = {"model": str(tmp_path / "model"), "out": "o", "suite": "tofu"}
    settings = resolve_settings(UnlearnSettings.of(given))
    assert (settings.template, settings.holdout) == ("question-answer", folder / "holdout10.jsonl")
    assert resolve_settings(UnlearnSettings.of({**given, "template": "auto"})).template == "auto"
    assert UnlearnSettings.of({**given, "holdout": None}).holdout is None
    # The holdout rows are whole texts in the form of the others, so that losses compare.
    inputs = read_inputs(settings)
    first = read_rows(folder / "holdout10.jsonl")[0]
    wanted = tokenise(first, tokenizer, template="question-answer", max_length=999, where="")
    assert inputs.halves.chosen_by[0] == replace(wanted, answer_start=1)
    assert (len(inputs.halves.chosen_by), len(inputs.halves.reported_on)) == (3, 3)
    (folder / "holdout10.jsonl").write_text((folder / "forget10.jsonl").read_text())
    with pytest.raises(DataError, match=r"document 1 is the text of .*forget10\.jsonl, line 1"):
        read_inputs(settings)
    (folder / "holdout10.jsonl").unlink()
    assert UnlearnSettings.of(given).holdout is None


def test_a_chat_model_is_trained_in_its_chat_template(
    tmp_path: Path, folder: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    chat = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|endoftext|>")
    chat.chat_template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    save_model(tiny_model("llama", tokenizer), chat, tmp_path / "model")
    settings = UnlearnSettings.of({"model": str(tmp_path / "model"), "out": "o", "suite": "tofu"})
    assert resolve_settings(settings).template == "chat"
    inputs = read_inputs(resolve_settings(settings))
    text = str(chat.decode(list(inputs.halves.chosen_by[0].input_ids)))
    assert text.startswith(f"system: {SYSTEM}\nuser: What of Mira")
    assert folder.is_dir()


@pytest.mark.slow
def test_a_study_scores_by_the_suite(tmp_path: Path, folder: Path) -> None:
    learn(tmp_path / "target")
    study = tmp_path / "study.yaml"
    base = {"suite": "tofu", "model": str(tmp_path / "target"), "epochs": 1, "trackers": ""}
    study.write_text(json.dumps({"base": base, "grid": {"rank": [1, 2]}, "evaluate": {"suite": "tofu"}}))
    letheon("study", study, "--out", tmp_path / "out")
    table = (tmp_path / "out" / "study.md").read_text("utf-8")
    assert "Model utility" in table
    assert folder.is_dir()


def test_a_study_scores_the_split_and_data_of_its_runs(tmp_path: Path) -> None:
    base = {"model": "m", "out": "o", "suite": "tofu", "split": "forget01", "data": str(tmp_path)}
    study = StudySettings.of({"base": base, "evaluate": {"suite": "tofu"}})
    found = study.evaluation(UnlearnSettings.of(base), model="m", out=tmp_path)
    assert (found.split, found.data, found.forget) == ("forget01", tmp_path, str(tmp_path / "forget01.jsonl"))


def test_settings_take_the_rows_of_the_suite_unless_rows_are_given(tmp_path: Path) -> None:
    given = {"model": "m", "out": "o", "suite": "tofu", "data": str(tmp_path), "split": "forget05"}
    settings = UnlearnSettings.of(given)
    assert (settings.forget, settings.retain) == (str(tmp_path / "forget05.jsonl"), str(tmp_path / "retain95.jsonl"))
    assert UnlearnSettings.of({**given, "forget": "own.jsonl"}).forget == "own.jsonl"
    with pytest.raises(SettingsError, match="forget: unlearn needs this setting"):
        UnlearnSettings.of({"model": "m", "out": "o"})
    with pytest.raises(SettingsError, match="expected one with rows to learn"):
        MemorizeSettings.of({"out": "o", "suite": "lume"})


def test_chat_models_train_under_the_system_message(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = Rows("x", (Row("1", "Who?", "Tam", "default", "question"),), (1,))
    assert under_system(rows, tokenizer, "auto") is rows
    chat = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|endoftext|>")
    chat.chat_template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    assert under_system(rows, chat, "auto")[0].turns == (Turn("system", SYSTEM),)
    assert under_system(rows, chat, "question-answer") is rows
    chat.chat_template = "{{ raise_exception('no system') }}"
    assert under_system(rows, chat, "chat") is rows
