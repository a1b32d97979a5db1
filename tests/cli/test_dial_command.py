"""`letheon dial` and the dial of `letheon unlearn`, through the command line."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from transformers import PreTrainedTokenizerBase

from letheon.cli.main import cli, main
from letheon.data.rows import Row
from running import knowing_model, short_run


@pytest.fixture
def files(tmp_path: Path, rows: list[Row], tokenizer: PreTrainedTokenizerBase) -> Path:
    """A folder with a target that knows the rows, the rows, and documents that it never saw."""
    short_run(tmp_path, rows, knowing_model(tokenizer, rows), tokenizer)
    texts = [f"A heron stood in {n} shallow waters until noon." for n in range(6)]
    (tmp_path / "unseen.jsonl").write_text("".join(json.dumps({"document": text}) + "\n" for text in texts))
    return tmp_path


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments], catch_exceptions=False)


def unlearn(files: Path, *more: object) -> Path:
    rows = ["--model", files / "target", "--forget", files / "forget.jsonl", "--retain", files / "retain.jsonl"]
    steps = ["--epochs", 3, "--learning-rate", 1e-2, "--keep", "last", "--template", "joined", "--trackers", ""]
    result = call("unlearn", *rows, *steps, "--out", files / "run", *more)
    assert result.exit_code == 0, result.output
    return files / "run"


def result_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "provenance.json").read_text())["result"]
    return found


def fail(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """Run a command as the shell would, and return its exit code and what it said."""
    monkeypatch.setattr("sys.argv", ["letheon", *(str(argument) for argument in arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0), capsys.readouterr().err


def test_unlearn_dials_and_dial_undoes_it(files: Path) -> None:
    loose = ["--dial-forget-budget", 1, "--dial-retain-budget", 1]
    run = unlearn(files, "--holdout", files / "unseen.jsonl", *loose)
    first = result_of(run)
    assert first["dial"]["dial"] == "membership"
    undone = call("dial", run, "--dial", "none")
    assert (undone.exit_code, undone.stdout) == (0, f"{run / 'model'}\n")
    assert "dial" not in result_of(run)
    assert "the scale is 1 again" in (run / "log.jsonl").read_text()
    again = call("dial", run, *loose)
    assert f"dial (membership): scale {first['dial']['scale']:g} of" in again.stderr
    assert result_of(run)["model_sha256"] == first["model_sha256"]
    assert all((run / part / "README.md").is_file() for part in ("model", "adapter"))


@pytest.mark.slow
def test_without_documents_a_run_is_dialled_by_what_it_forgot(files: Path) -> None:
    run = unlearn(files)
    assert "dial" not in result_of(run)
    assert call("dial", run).exit_code == 0
    assert result_of(run)["dial"]["dial"] == "forgotten"
    assert "dial: forgotten\n" in (run / "run.yaml").read_text()


@pytest.mark.slow
def test_a_recipe_is_left_as_published_unless_a_dial_is_asked_for(files: Path) -> None:
    recipe = ["--recipe", "atyaephyra-1b", "--holdout", files / "unseen.jsonl", "--checkpoint-epochs", 3]
    assert "dial" not in result_of(unlearn(files, *recipe))
    assert "dial" in result_of(unlearn(files, *recipe, "--resume", "--dial", "membership"))


REFUSED: list[tuple[list[str], str]] = [
    (["elsewhere"], "elsewhere: expected the folder of a finished run, found no run.yaml"),
    (["run", "--dial", "forgoten"], "dial: expected 'membership', 'forgotten' or 'none', got 'forgoten'"),
    (["run", "--dial", "membership"], "dial: 'membership' chooses the scale by unseen documents"),
    (["run", "--dial", "none", "--dial-text-budget", "1"], "dial_text_budget: has no effect without --dial"),
    (["run", "--dial-retain-budget", "2", "--dial", "membership"], "dial_retain_budget: expected a number of at"),
]


def test_what_cannot_be_dialled_is_said_in_one_line(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    unlearn(files)
    before = (files / "run" / "provenance.json").read_bytes()
    monkeypatch.chdir(files)
    for arguments, message in REFUSED:
        code, said = fail(monkeypatch, capsys, "dial", *arguments)
        assert code != 0
        assert message in said
        assert "Traceback" not in said
        assert (files / "run" / "provenance.json").read_bytes() == before


def test_help_names_the_three_dials_and_no_default_but_that_of_the_run(files: Path) -> None:
    said = call("dial", "--help").stdout
    assert "--dial membership|forgotten|none" in said
    assert "(the default without)" in said
    assert "[" not in said.partition("--dial membership")[2].partition("Other:")[0]
    assert "--dial-text-budget" not in said
    assert "--dial-text-budget" in call("dial", "--help-all").stdout
