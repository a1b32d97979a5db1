"""The command line: settings from flags, files and recipes; errors; the whole way through on a small model."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from letheon.cli.main import cli, main
from letheon.data.rows import Row, write_rows
from letheon.errors import SettingsError
from letheon.model.loading import save_model
from letheon.objective.catalogue import METHODS
from letheon.recipes import recipe_names
from letheon.settings import EvaluateSettings, UnlearnSettings, read_config

REQUIRED = {"model": "m", "forget": "f", "retain": "r", "out": "o"}


def call(*arguments: object) -> str:
    """Run a command that must succeed and return what it printed."""
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def fail(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """Run a command as the shell would, and return its exit code and what it said."""
    monkeypatch.setattr("sys.argv", ["letheon", *(str(argument) for argument in arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0), capsys.readouterr().err


@pytest.fixture
def files(tmp_path: Path, rows: list[Row], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Path:
    """A folder with a target and its rows."""
    save_model(model, tokenizer, tmp_path / "target")
    write_rows(rows[:3], tmp_path / "forget.jsonl")
    write_rows(rows[3:], tmp_path / "retain.jsonl")
    return tmp_path


def sets(folder: Path) -> list[object]:
    return ["--forget", folder / "forget.jsonl", "--retain", folder / "retain.jsonl"]


@pytest.mark.parametrize("command", ["unlearn", "evaluate", "memorize", "data", "demo", "methods", "report"])
def test_help_fits_two_screens(command: str) -> None:
    assert len(call(command, "--help").splitlines()) <= 100


def test_unlearn_evaluate_and_report_leave_their_files(files: Path) -> None:
    run = files / "run"
    target, before = ["--model", files / "target", *sets(files)], run / "evaluation" / "before"
    call("evaluate", *target, "--out", before, "--max-new-tokens", 8)
    printed = call("unlearn", *target, "--out", run, "--epochs", 1, "--template", "joined", "--no-evaluate")
    assert str(run / "model") in printed
    AutoModelForCausalLM.from_pretrained(run / "model")
    assert "unlearning" in (run / "model" / "README.md").read_text()
    after = run / "evaluation" / "after"
    printed = call("evaluate", "--model", run / "model", *sets(files), "--out", after, "--max-new-tokens", 8)
    assert "Task aggregate" in printed
    assert "Value" in printed
    assert "Before" not in printed
    official = json.loads((after / "evaluation_results.jsonl").read_text())
    assert official["aggregate-score"] == -1
    assert len((after / "predictions.jsonl").read_text().splitlines()) == 6
    call("report", run)
    assert "<html" in (run / "report.html").read_text()


def test_each_command_says_what_it_read(files: Path) -> None:
    turns = [{"role": role, "content": f"{role} {n}"} for n in (1, 2) for role in ("user", "assistant")]
    chat = files / "chat.jsonl"
    chat.write_text(json.dumps({"messages": turns}))
    given = ["--model", files / "target", "--forget", chat, "--retain", files / "retain.jsonl"]
    asked = ["--turns", "every", "--out", files / "out"]
    understood = f"{chat}: 2 rows: messages, every turn of the assistant\n"
    printed = call("evaluate", *given, *asked, "--max-new-tokens", 4)
    assert understood + f"{files / 'retain.jsonl'}: 3 rows: input/output\n" in printed
    predictions = (files / "out" / "predictions.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in predictions][:2] == ["row1#1", "row1#2"]
    assert understood in call("unlearn", *given, *asked[:2], "--plan")
    small = ["--out", files / "new", "--vocab-size", 300, "--width", 8, "--num-layers", 1, "--num-heads", 1]
    printed = call("memorize", "--rows", chat, *small, "--max-steps", 1)
    assert f"{chat}: 1 row: messages, last turn of each\n" in printed


def test_scores_can_be_recomputed_without_a_model(files: Path) -> None:
    call("evaluate", "--model", files / "target", *sets(files), "--out", files / "e", "--max-new-tokens", 8)
    call("evaluate", "--predictions", files / "e" / "predictions.jsonl", "--out", files / "again")
    first, again = (json.loads((files / name / "results.json").read_text()) for name in ("e", "again"))
    assert first["forget"] == again["forget"]
    assert first["task_aggregate"] == again["task_aggregate"]
    call("evaluate", "--predictions", files / "e" / "predictions.jsonl", "--out", files / "e")
    assert json.loads((files / "e" / "results.json").read_text())["task_aggregate"] == first["task_aggregate"]
    # The same model and rows, by other names for them: an evaluation may be made again.
    named = ["--model", files / "." / "target", *sets(files), "--out", files / "again", "--max-new-tokens", 8]
    assert f"{files / 'again'}: replaces the scores there, which are of the same model and rows" in call(
        "evaluate", *named
    )


def test_flags_override_the_config_which_overrides_the_recipe(files: Path) -> None:
    (files / "config.yaml").write_text("epochs: 2\nrank: 3\n")
    call(
        "unlearn", "--recipe", "atyaephyra-1b", "--config", files / "config.yaml", "--epochs", 1,
        "--model", files / "target", *sets(files), "--out", files / "run", "--no-evaluate",
    )  # fmt: skip
    settings = yaml.safe_load((files / "run" / "run.yaml").read_text())
    assert (settings["epochs"], settings["rank"], settings["optimiser"]) == (1, 3, "adam")


def test_trackers_write_tensorboard_events(files: Path) -> None:
    call(
        "unlearn", "--model", files / "target", *sets(files), "--out", files / "run", "--epochs", 1,
        "--trackers", "tensorboard", "--template", "joined", "--no-evaluate",
    )  # fmt: skip
    assert list((files / "run").rglob("events.out.tfevents*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["unlearn"], "model: unlearn needs this setting (--model)"),
        (["unlearn", "--epochs", "x"], "epochs: expected a whole number, got 'x'"),
        (["unlearn", "--recipe", "atyaephyra-8b"], "did you mean 'atyaephyra-7b'"),
        (["unlearn", "--config", "missing.yaml"], "missing.yaml: the settings file cannot be read"),
        (["unlearn", "--fields", "prompt"], "fields: expected NAME=VALUE pairs"),
        (["methods", "simnp"], "(did you mean 'simnpo'?)"),
        (["methods", "neko-7b"], "(did you mean 'neko-1b'?)"),
        (["evaluate", "--predictions", "p.jsonl", "--model", "m", "--out", "o"], "model: no such setting"),
        (["data", "synthetic", "--to", "x", "--size", "smal"], "did you mean 'small'"),
    ],
)
def test_mistakes_end_with_code_2_and_one_paragraph(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = fail(monkeypatch, capsys, *arguments)
    assert code == 2
    assert message in said
    assert "Traceback" not in said


def test_memorize_takes_several_files_after_one_flag(files: Path) -> None:
    rows = ["--rows", files / "forget.jsonl", files / "retain.jsonl"]
    size = ["--width", 64, "--num-layers", 1, "--num-heads", 2, "--vocab-size", 400, "--max-steps", 3]
    call("memorize", *rows, "--architecture", "llama", *size, "--out", files / "made")
    facts = json.loads((files / "made" / "memorize.json").read_text())
    assert facts["settings"]["rows"] == [str(files / "forget.jsonl"), str(files / "retain.jsonl")]
    assert facts["report"]["num_rows"] == 6
    AutoModelForCausalLM.from_pretrained(files / "made")


def test_memorize_trains_an_adapter_and_leaves_an_ordinary_checkpoint(files: Path) -> None:
    rows = ["--model", files / "target", "--rows", files / "forget.jsonl", files / "retain.jsonl"]
    adapter = ["--adapt", "lora", "--rank", 8, "--alpha", 8, "--target-modules", "q_proj,v_proj", "--lr", "1e-2"]
    call("memorize", *rows, *adapter, "--max-steps", 3, "--out", files / "made")
    assert not list((files / "made").glob("adapter*"))
    made, target = (AutoModelForCausalLM.from_pretrained(files / name).state_dict() for name in ("made", "target"))
    assert made.keys() == target.keys()
    moved = {name.split(".")[-2] for name, value in made.items() if not value.equal(target[name])}
    assert moved == {"q_proj", "v_proj"}
    assert json.loads((files / "made" / "memorize.json").read_text())["settings"]["rank"] == 8


def test_memorize_stops_at_the_recall_that_was_asked_for(files: Path) -> None:
    size = ["--width", 64, "--num-layers", 1, "--num-heads", 2, "--vocab-size", 400, "--max-steps", 400]
    rows = ["--rows", files / "forget.jsonl", "--lr", "5e-3", "--target-accuracy", 0.3]
    call("memorize", *rows, *size, "--out", files / "made")
    report = json.loads((files / "made" / "memorize.json").read_text())["report"]
    assert report["reached"]
    assert report["steps"] < 400
    assert 0.3 <= report["accuracy"]


def test_lists_may_be_separated_by_commas_or_spaces(files: Path) -> None:
    for number, given in enumerate((["q_proj,o_proj"], ["q_proj", "o_proj"])):
        call(
            "unlearn", "--model", files / "target", *sets(files), "--out", files / f"run{number}", "--epochs", 1,
            "--target-modules", *given, "--trackers", "", "--no-evaluate",
        )  # fmt: skip
        settings = yaml.safe_load((files / f"run{number}" / "run.yaml").read_text())
        assert (settings["target_modules"], settings["trackers"]) == (["q_proj", "o_proj"], [])


def test_a_missing_extra_is_said_before_the_model_loads(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    given = ["--model", "/nowhere/at/all", *sets(files), "--out", files / "e", "--mmlu-harness"]
    code, said = fail(monkeypatch, capsys, "evaluate", *given)
    assert code == 2
    assert "pip install 'letheon[harness]'" in said


def test_unknown_flags_name_the_nearest(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = fail(monkeypatch, capsys, "unlearn", "--epoch", "3")
    assert code == 2
    assert "--epochs" in said


def test_yaml_keys_are_checked_as_flags_are(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("learning-rate: 0.1\nepoch: 3\n")
    with pytest.raises(SettingsError, match=r"epoch: no such setting of unlearn \(did you mean 'epochs'\?\)"):
        UnlearnSettings.of({**REQUIRED, **read_config(tmp_path / "c.yaml")})
    for text in ("- a\n", "a: [", "1: 2\n"):
        (tmp_path / "c.yaml").write_text(text)
        with pytest.raises(SettingsError, match=r"c\.yaml: expected"):
            read_config(tmp_path / "c.yaml")


def test_methods_are_listed_and_described() -> None:
    listed = call("methods")
    assert all(name in listed for name in [*METHODS, *recipe_names()])
    assert "2503.13690" in call("methods", "low-rank-npo")
    assert "checkpoint_epochs: 10" in call("methods", "atyaephyra-7b")
    assert call("methods", "--markdown").startswith("# Methods")


def test_settings_survive_yaml(tmp_path: Path) -> None:
    settings: Any = EvaluateSettings.of({**REQUIRED, "mmlu": tmp_path, "fields": {"prompt": "q"}})
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(settings.plain()))
    assert EvaluateSettings.of(read_config(tmp_path / "s.yaml")) == settings
