"""What a job shows while it lasts: lines in a log, with a clock that the tests turn; bars on a terminal."""

import io
import math
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from letheon.cli.main import cli
from letheon.data.rows import Row, write_rows
from letheon.memorizing.memorize import memorize, shown_on
from letheon.memorizing.options import MemorizeOptions
from letheon.model.loading import save_model
from letheon.progress import Bars, Lines, duration, open_display, shown_values

Said = tuple[Lines, Callable[[], list[str]]]


class Clock:
    """A clock that stands still until it is turned."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def said(clock: Clock) -> Said:
    """Lines with that clock, and what they have said since asked last."""
    file = io.StringIO()
    lines = Lines(Console(file=file, width=40), "the job", clock=clock)

    def read() -> list[str]:
        text = file.getvalue()
        file.seek(0)
        file.truncate()
        return text.splitlines()

    return lines, read


def test_the_first_step_is_a_line_and_then_one_every_half_minute(clock: Clock, said: Said) -> None:
    lines, read = said
    found = {}
    for step in range(1, 101):
        lines.show("step", step, 100, {"loss": 2.0 / step, "tok/s": 1234.5})
        if line := read():
            found[step] = line
        clock.now_s += 7.0
    # 7 s a step: a line at the first step at 30 s or more after the last one, which is every fifth.
    assert list(found) == list(range(1, 101, 5))
    assert found[1] == ["step 1/100, loss 2, tok/s 1234"]
    assert found[6] == ["step 6/100, loss 0.3333, tok/s 1234, 11 min left"]  # 94 * 7 s = 658 s
    assert found[91] == ["step 91/100, loss 0.02198, tok/s 1234, 63 s left"]


def test_a_long_silence_is_broken_with_how_long_it_has_lasted(clock: Clock, said: Said) -> None:
    lines, read = said
    lines.show("loading the model", 0, 0)
    assert read() == ["loading the model"]  # the very first line
    for _ in range(61):
        clock.now_s += 1.0
        lines.beat()
    assert read() == ["loading the model, for 30 s", "loading the model, for 60 s"]

    lines.show("step", 3, 9)
    clock.now_s += 20.0
    lines.show("step", 4, 9)
    clock.now_s += 40.0
    lines.beat()
    # A step takes 20 s, five are left, and 40 s have passed since.
    assert read() == ["step 3/9", "step 4/9, 60 s left, 40 s since then"]


def test_a_stage_that_begins_again_has_no_line_of_its_own_and_a_new_speed(clock: Clock, said: Said) -> None:
    lines, read = said
    lines.show("scoring", 1, 4)
    clock.now_s += 1.0
    lines.show("scoring", 4, 4)
    clock.now_s += 5.0
    lines.show("scoring", 1, 4)
    assert read() == ["scoring 1/4"]
    clock.now_s += 30.0
    lines.show("scoring", 2, 4)
    assert read() == ["scoring 2/4, 60 s left"]


def test_a_run_that_goes_on_counts_only_the_steps_it_took_itself(clock: Clock, said: Said) -> None:
    lines, read = said
    lines.show("step", 501, 1000)
    clock.now_s += 30.0
    lines.show("step", 511, 1000)
    assert read() == ["step 501/1000", "step 511/1000, 24 min left"]  # 3 s a step, 489 of them: 1467 s


def test_a_note_is_always_said_and_counts_as_a_line(clock: Clock, said: Said) -> None:
    lines, read = said
    lines.show("step", 1, 9)
    clock.now_s += 29.0
    lines.note("epoch 1: \x1b[31mfine")
    clock.now_s += 29.0
    lines.show("step", 2, 9)
    assert read() == ["step 1/9", "epoch 1: \\x1b[31mfine"]


def test_inside_its_context_lines_come_by_themselves(clock: Clock) -> None:
    spoke, file = threading.Event(), io.StringIO()

    class Turned(Lines):
        def beat(self) -> None:
            clock.now_s += 5.0
            super().beat()
            spoke.set()

    with Turned(Console(file=file, width=40), "the job", clock=clock, first_s=5):
        assert file.getvalue() == ""
        assert spoke.wait(20)
    assert file.getvalue().splitlines()[0] == "the job, for 5 s"
    assert not [thread for thread in threading.enumerate() if thread.name == "letheon-progress"]


def test_a_terminal_keeps_bars_and_a_file_gets_lines() -> None:
    screen, file = io.StringIO(), io.StringIO()
    terminal = Console(file=screen, width=100, force_terminal=True, _environ={"TERM": "xterm"})
    bars, lines = open_display(terminal, "job"), open_display(Console(file=file), "job")
    assert isinstance(bars, Bars)
    assert isinstance(lines, Lines)
    with bars:
        bars.show("reference pass", 2, 6)
        bars.show("step", 3, 9, {"loss": 0.5})
        bars.note("a note")
    last = screen.getvalue().split("a note")[-1]
    assert "3/9" in last
    assert "loss 0.5" in last
    assert "2/6" not in last.splitlines()[-1]


def test_numbers_are_short() -> None:
    values = {"loss": 0.123456, "none": None, "nan": math.nan, "tok/s": 123456.7, "off": -2500.0}
    assert shown_values(values) == ["loss 0.1235", "tok/s 123457", "off -2500"]
    found = [duration(seconds) for seconds in (0.4, 89.4, 90, 5399, 5400, 7265, 90000)]
    assert found == ["0 s", "89 s", "2 min", "90 min", "1 h 30 min", "2 h 1 min", "25 h 0 min"]


def test_memorising_shows_step_loss_speed_and_the_most_time_left(
    clock: Clock, said: Said, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[Row]
) -> None:
    lines, read = said
    report = shown_on(lines)
    options = MemorizeOptions(max_steps=5, check_every=100)

    def turned(now: object) -> None:
        clock.now_s += 10.0
        report(now)  # type: ignore[arg-type]

    memorize(model, tokenizer, rows=rows, options=options, progress=turned)
    first, second = read()
    assert first.startswith("step 1/5, loss ")
    assert ", tok/s " in first
    assert "text" not in first
    assert second.startswith("step 4/5, loss ")
    assert second.endswith(", at most 10 s left")


def test_commands_in_a_log_say_what_they_are_at(
    tmp_path: Path, rows: list[Row], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    save_model(model, tokenizer, tmp_path / "target")
    write_rows(rows[:3], tmp_path / "forget.jsonl")
    write_rows(rows[3:], tmp_path / "retain.jsonl")
    sets = ["--forget", str(tmp_path / "forget.jsonl"), "--retain", str(tmp_path / "retain.jsonl")]
    common = ["--model", str(tmp_path / "target"), *sets]
    run = ["unlearn", *common, "--out", str(tmp_path / "run"), "--cache-dir", str(tmp_path / "cache"), "--epochs", "1"]
    run += ["--no-evaluate"]
    expected = {
        (*run, "--trackers", ""): [
            "writing general text ",
            "reference pass ",
            "step 1/2, loss ",
            "scoring 6/6",
            "epoch 1: ",
            "kept epoch 1",
        ],
        ("evaluate", *common, "--out", str(tmp_path / "e")): ["generation "],
        ("memorize", "--rows", str(tmp_path / "forget.jsonl"), "--out", str(tmp_path / "m"), "--max-steps", "3",
         "--width", "32", "--num-layers", "1", "--vocab-size", "300"): ["step 1/3, loss ", "not fully"],
    }  # fmt: skip
    for command, beginnings in expected.items():
        said = CliRunner().invoke(cli, list(command), catch_exceptions=False).stderr.splitlines()
        places = [next(i for i, line in enumerate(said) if line.startswith(one)) for one in beginnings]
        assert places == sorted(places), said
