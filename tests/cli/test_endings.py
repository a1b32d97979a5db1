"""How commands end: exit codes, what is left, and the last line, through real processes and real signals."""

import json
import shlex
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from commands import finish, signalled, start
from letheon.data.rows import Row
from letheon.endings import Ending, run_to_end
from letheon.errors import DivergenceError, LetheonError
from letheon.signals import Interrupted, finishing, signals_raised
from letheon.storage.files import is_leftover
from running import as_flags, events, model_of, run, same, short_run

SIGNALS = [(signal.SIGTERM, 143), (signal.SIGINT, 130)]


@pytest.fixture
def given(
    tmp_path: Path, rows: list[Row], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    return short_run(tmp_path, rows, model, tokenizer)


def last_line(err: str) -> str:
    return err.strip().splitlines()[-1]


def command_in(line: str) -> list[str]:
    """The arguments of the command line that a last line ends with, without the program's name."""
    _, _, command = line.partition(" with: ")
    words = shlex.split(command)
    assert "letheon" in words
    return words[words.index("letheon") + 1 :]


# Signals


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_unlearn_saves_and_says_the_command_that_goes_on(
    number: signal.Signals, code: int, given: dict[str, Any], tmp_path: Path
) -> None:
    whole = run(given, out=tmp_path / "whole", epochs=40)
    ended, _, err = signalled("unlearn", *as_flags(given, epochs=40), at="step 1/120", number=number)
    assert ended == code
    folder = Path(given["out"])
    assert (folder / "model" / "model.safetensors").is_file()
    assert events(folder, "end")[-1]["reason"] == f"signal {number}"
    line = last_line(err)
    assert line.startswith(f"letheon: ended by {number.name}; go on with: letheon unlearn ")
    assert line.endswith(" --resume")
    ended, _, err = finish(start(*command_in(line)))
    assert ended == 0, err
    assert same(model_of(whole), model_of(run(given, epochs=40, resume=True)))


@pytest.mark.slow
def test_unlearn_that_is_ended_before_its_folder_was_made_is_begun_again(given: dict[str, Any]) -> None:
    ended = (
        "import os, signal, letheon.unlearning.reading as r\nr.read_inputs = lambda *_, **__: signal.raise_signal(15)"
    )
    code, _, err = finish(start("unlearn", *as_flags(given), setup=ended))
    assert code == 143
    assert last_line(err).startswith("letheon: ended by SIGTERM; go on with: letheon unlearn ")
    assert "--resume" not in last_line(err)
    assert not Path(given["out"]).exists()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_memorize_ends_cleanly_and_leaves_nothing(number: signal.Signals, code: int, given: dict[str, Any]) -> None:
    out = Path(given["out"])
    shape = {"width": 32, "num_layers": 1, "vocab_size": 300, "max_steps": 100_000, "learning_rate": 1e-9}
    command = ["memorize", *as_flags({"rows": given["forget"], "out": out, **shape})]
    ended, _, err = signalled(*command, at="step 1/100000", number=number)
    assert ended == code
    assert not out.exists()
    assert not any(is_leftover(path) for path in out.parent.iterdir())
    assert "Traceback" not in err
    line = last_line(err)
    assert line.startswith(f"letheon: ended by {number.name}; begin again with: ")
    assert command_in(line) == command


@pytest.mark.slow
def test_evaluate_ends_cleanly_and_leaves_nothing(given: dict[str, Any]) -> None:
    out = Path(given["out"])
    command = ["evaluate", *as_flags(given, "model", "forget", "retain", "out", batch_size=1, max_new_tokens=250)]
    code, _, err = signalled(*command, at="generation ")
    assert code == 143
    assert not out.exists()
    assert "Traceback" not in err
    assert last_line(err).startswith("letheon: ended by SIGTERM; begin again with: letheon evaluate ")


@pytest.mark.slow
def test_evaluate_over_earlier_results_leaves_them_as_they_were(given: dict[str, Any]) -> None:
    command = ["evaluate", *as_flags(given, "model", "forget", "retain", "out", max_new_tokens=4)]
    assert finish(start(*command))[0] == 0
    before = {path.name: path.read_bytes() for path in Path(given["out"]).iterdir()}
    code, _, _ = signalled(*command[:-1], "250", "--batch-size", "1", at="generation ")
    assert code == 143
    assert {path.name: path.read_bytes() for path in Path(given["out"]).iterdir()} == before


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "at"), [("memorising", "step 1/3000"), ("unlearning", "step 1/")])
def test_demo_ends_with_the_signal_and_scores_nothing_of_a_cut_run(stage: str, at: str, tmp_path: Path) -> None:
    out, begun = tmp_path / "a demo", []

    def is_due(line: str) -> bool:
        begun.append(stage == "memorising" or line.startswith("evaluating the target:"))
        return any(begun) and at in line

    code, _, err = signalled("demo", "--size", "tiny", "--out", out, at=is_due)
    assert code == 143
    assert "Task aggregate" not in err
    assert last_line(err).endswith(f"begin again with: rm -r '{out}' && letheon demo --size tiny --out '{out}'")
    if stage == "unlearning":
        assert events(out / "run", "end")[-1]["reason"] == "signal 15"
        assert (out / "run" / "model" / "model.safetensors").is_file()
        assert not (out / "run" / "evaluation" / "after").exists()
        assert not (out / "run" / "report.html").exists()


def study_file(given: dict[str, Any], folder: Path, **changed: Any) -> Path:
    base = {name: str(value) for name, value in given.items() if name not in ("out", "evaluate")}
    values = {"base": {**base, "epochs": 1, "batch_size": 2, "learning_rate": 1e-3}, "evaluate": None, **changed}
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.slow
def test_study_ends_with_the_signal_and_goes_on_by_the_same_command(given: dict[str, Any], tmp_path: Path) -> None:
    file = study_file(given, tmp_path, grid={"gamma": [0.5, 1.0]}, evaluate={"max_new_tokens": 200, "batch_size": 1})
    command = ["study", str(file), "--out", str(tmp_path / "study")]
    code, _, err = signalled(*command, at="original model: scoring")
    assert code == 143
    assert last_line(err) == f"letheon: ended by SIGTERM; go on with: {shlex.join(['letheon', *command])}"
    assert finish(start(*command))[0] == 0
    record = json.loads((tmp_path / "study" / "study.json").read_text())
    assert [one["state"] for one in record["runs"]] == ["finished", "finished"]


# Exit codes of studies


@pytest.mark.slow
@pytest.mark.parametrize(("rates", "code", "num"), [([1e-3, 2e-3], 0, 0), ([1e-3, 1e30], 1, 1), ([1e30, 1e31], 1, 2)])
def test_study_tells_by_its_exit_code_whether_runs_diverged(
    rates: list[float], code: int, num: int, given: dict[str, Any], tmp_path: Path
) -> None:
    file = study_file(given, tmp_path, grid={"learning_rate": rates})
    for _ in range(2):  # the second time nothing is run, and the record says the same
        ended, _, err = finish(start("study", file, "--out", tmp_path / "study"))
        assert ended == code, err
        assert (f"{num} of 2 runs failed, diverged or could not be scored" in err) == bool(num)


@pytest.mark.slow
def test_study_of_failed_runs_ends_with_1(given: dict[str, Any], tmp_path: Path) -> None:
    # Of the first no forget row has an answer token left; the second, which diverges, can only be told by running it.
    listed = [{"max_length": 2, "overlong": "truncate"}, {"learning_rate": 1e30}]
    file = study_file(given, tmp_path, list=listed)
    code, _, err = finish(start("study", file, "--out", tmp_path / "study"))
    assert code == 1, err
    assert "2 of 2 runs failed" in err
    record = json.loads((tmp_path / "study" / "study.json").read_text())
    assert "no answer token" in record["runs"][0]["reason"]
    assert record["runs"][1]["state"] == "diverged"


# In one process


def test_each_ending_has_its_code_and_its_words(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def fails_with(error: BaseException) -> tuple[int, str]:
        def command(_: Ending) -> None:
            raise error

        return run_to_end(command, ["unlearn", "--out", "a b"]), capsys.readouterr().err

    assert run_to_end(lambda _: None, []) == 0
    assert run_to_end(lambda _: 1, []) == 1
    assert capsys.readouterr().err == ""
    assert fails_with(LetheonError("no such row")) == (2, "letheon: error: no such row\n")
    assert fails_with(DivergenceError("nan"))[0] == 3
    assert fails_with(FileNotFoundError(2, "No such file", "x"))[0] == 2
    again = "letheon unlearn --out 'a b'\n"
    assert fails_with(Interrupted(15)) == (143, f"letheon: ended by SIGTERM; go on with: {again}")
    assert fails_with(Interrupted(2)) == (130, f"letheon: ended by SIGINT; go on with: {again}")
    # A command that has saved and returns the code of the signal.
    assert run_to_end(lambda _: 143, ["study", "s.yaml"]) == 143
    assert capsys.readouterr().err == "letheon: ended by SIGTERM; go on with: letheon study s.yaml\n"
    secret = run_to_end(lambda _: 143, ["study", "--storage", "postgresql://me:secret@host/db"])
    assert secret == 143
    assert "secret" not in capsys.readouterr().err


def test_resume_is_said_once_and_only_where_there_is_a_folder(tmp_path: Path) -> None:
    there, absent = Ending(resumes_in=tmp_path), Ending(resumes_in=tmp_path / "absent")
    assert there.command(["unlearn"]) == "letheon unlearn --resume"
    assert there.command(["unlearn", "--resume"]) == "letheon unlearn --resume"
    assert absent.command(["unlearn"]) == "letheon unlearn"


def test_a_signal_waits_for_what_is_being_finished() -> None:
    done: list[str] = []

    def write() -> None:
        with finishing():
            signal.raise_signal(signal.SIGTERM)
            done.append("written")
        done.append("went on")

    with pytest.raises(Interrupted, match="signal 15"), signals_raised():
        write()
    assert done == ["written"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
