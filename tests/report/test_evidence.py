"""Files of a run that are mixed, edited, interrupted or cut, through the command line."""

import json
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from transformers import PreTrainedTokenizerBase

from letheon.cli.main import cli
from letheon.data.rows import Row, read_rows, write_rows
from letheon.model.loading import save_model
from letheon.settings import UnlearnSettings, read_config
from letheon.storage.fingerprints import differences, hash_checkpoint, hash_values
from letheon.unlearning.attempts import Attempt, costs_of
from letheon.unlearning.run import unlearn
from running import After, events, knowing_model, short_run
from small import tiny_model


def call(*arguments: object) -> tuple[int, str]:
    """Run a command and return its exit code and what it said."""
    done = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    return done.exit_code, f"{done.output}{done.exception or ''}"


@dataclass(frozen=True)
class Job:
    """A run's files, and the command that makes or goes on with it."""

    given: dict[str, Any]
    config: Path

    @property
    def folder(self) -> Path:
        return Path(self.given["out"])

    def unlearn(self, *flags: object) -> tuple[int, str]:
        return call("unlearn", "--config", self.config, *flags)

    def evaluate(self, side: str, *flags: object) -> tuple[int, str]:
        model = self.given["model"] if side == "before" else self.folder / "model"
        rows = ("--forget", self.given["forget"], "--retain", self.given["retain"])
        out = self.folder / "evaluation" / side
        shutil.rmtree(out, ignore_errors=True)  # other scores are not written over
        return call("evaluate", "--model", model, *rows, "--max-new-tokens", 16, "--out", out, *flags)

    def interrupt(self, after: int = 4) -> None:
        """Run until SIGTERM comes after a step."""
        stop = After(after, lambda: signal.raise_signal(signal.SIGTERM))
        assert unlearn(UnlearnSettings.of(self.given), observer=stop).exit_code == 143


@pytest.fixture(autouse=True)
def _without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw no figures, which take most of a page's time and are tested elsewhere."""
    monkeypatch.setattr("letheon.report.page.figure_svgs", lambda run: {})


@pytest.fixture
def job(tmp_path: Path, rows: list[Row], tokenizer: PreTrainedTokenizerBase) -> Job:
    """A run of 9 steps on a model that knows its rows; nothing is made yet."""
    return job_in(tmp_path, rows, tokenizer)


def job_in(folder: Path, rows: list[Row], tokenizer: PreTrainedTokenizerBase) -> Job:
    given = {**short_run(folder, rows, knowing_model(tokenizer, rows), tokenizer), "keep": "last"}
    config = folder / "job.yaml"
    config.write_text(yaml.safe_dump({name: str(v) if isinstance(v, Path) else v for name, v in given.items()}))
    return Job(given, config)


# Fingerprints


def test_fingerprints_of_files_by_hand(tmp_path: Path) -> None:
    assert hash_checkpoint(tmp_path) is None
    assert hash_checkpoint(None) is None
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    # sha256sum of "weights", and of the line "model.safetensors <that>".
    alone = hash_checkpoint(tmp_path)
    assert alone == "00949863ce2c724c828ec420ec87add3479f4d8650386241e30d4162a539848b"
    (tmp_path / "README.md").write_text("a card is not what is computed with")
    assert hash_checkpoint(tmp_path) == alone
    (tmp_path / "config.json").write_text("{}")
    assert hash_checkpoint(tmp_path) != alone


def test_documents_are_told_apart_by_content_and_order() -> None:
    assert hash_values(["a", "b"]) != hash_values(["b", "a"]) != hash_values(["ab"]) != hash_values(["a\nb"])


def test_only_what_both_know_is_compared() -> None:
    then, now = {"forget_sha256": "a" * 64, "template": "joined"}, {"forget_sha256": "b" * 64, "date": "2026-01-01"}
    assert differences(then, now, ("forget_sha256", "template", "date")) == [
        "the forget rows: aaaaaaaaaaaa there, bbbbbbbbbbbb here"
    ]


def test_the_fingerprints_stand_in_all_that_a_run_leaves(job: Job) -> None:
    assert job.unlearn()[0] == 0
    provenance = json.loads((job.folder / "provenance.json").read_text())
    read = provenance["read"]
    named = ("model", "weights", "tokenizer", "forget", "retain", "sequences")
    assert all(len(read[f"{name}_sha256"]) == 64 for name in named)
    assert read["model_sha256"] == hash_checkpoint(Path(job.given["model"]))
    form = json.loads((job.folder / "form.json").read_text())
    assert {name: form[name] for name in read} == read
    states = sorted((job.folder / "checkpoints").glob("step-*/state.json"))
    assert len(states) == 2
    assert all(json.loads(path.read_text())["read"] == read for path in states)
    text = (job.folder / "run.yaml").read_text()
    assert all(f"#   {name}_sha256: {read[f'{name}_sha256']}\n" in text for name in named)
    assert read_config(job.folder / "run.yaml")["template"] == "joined"


def test_the_hash_is_of_the_rows_read_not_of_the_file_at_the_end(job: Job, rows: list[Row]) -> None:
    assert job.unlearn()[0] == 0
    as_read = json.loads((job.folder / "provenance.json").read_text())["forget"]["sha256"]
    shutil.rmtree(job.folder)
    overwrite = After(2, lambda: write_rows([replace(rows[0], answer="x")], Path(job.given["forget"])))
    unlearn(UnlearnSettings.of(job.given), observer=overwrite)
    assert json.loads((job.folder / "provenance.json").read_text())["forget"]["sha256"] == as_read


# Going on with other inputs


def _other_rows(name: str) -> Callable[[Job], object]:
    def change(job: Job) -> None:
        path = Path(job.given[name])
        first, *rest = read_rows(path)
        write_rows([replace(first, answer=f"{first.answer} more"), *rest], path)

    return change


def _other_weights(job: Job) -> None:
    tokenizer_files = Path(job.given["model"])
    from letheon.model.loading import load_tokenizer

    tokenizer = load_tokenizer(str(tokenizer_files))
    save_model(tiny_model("olmo", tokenizer), tokenizer, tokenizer_files.with_name("other"))
    shutil.copy(tokenizer_files.with_name("other") / "model.safetensors", tokenizer_files / "model.safetensors")


def _other_tokenizer(job: Job) -> None:
    path = Path(job.given["model"]) / "tokenizer.json"
    rules = json.loads(path.read_text())
    rules["model"]["merges"] = rules["model"]["merges"][:-1]
    path.write_text(json.dumps(rules))


INPUTS: dict[str, tuple[Callable[[Job], object], tuple[str, ...]]] = {
    "the forget rows": (_other_rows("forget"), ()),
    "the retain rows": (_other_rows("retain"), ()),
    "the model's weights or configuration": (_other_weights, ()),
    "the tokenizer or its chat template": (_other_tokenizer, ()),
    "the form of the rows (--template)": (lambda job: None, ("--template", "pair")),
}


@pytest.mark.parametrize("without_form", [False, True])
@pytest.mark.parametrize("what", list(INPUTS))
def test_a_run_does_not_go_on_with_other_inputs(what: str, without_form: bool, job: Job) -> None:
    job.interrupt()
    # Where else it wrote is noted before anything is written there.
    files = (path for path in job.folder.rglob("*") if path.is_file() and path.name != "outside.json")
    before = {path: path.read_bytes() for path in files}
    change, flags = INPUTS[what]
    change(job)
    if without_form:
        (job.folder / "form.json").unlink()
    code, said = job.unlearn("--resume", *flags)
    assert code == 1
    assert f"{what}: " in said
    assert " there, " in said
    assert ("from checkpoints/step-" if without_form else "from form.json") in said
    assert all(path.read_bytes() == held for path, held in before.items() if path.exists())
    assert [path.name for path in before if not path.exists()] == (["form.json"] if without_form else [])


def test_a_run_goes_on_where_the_same_rows_lie_in_another_order_of_fields(job: Job) -> None:
    job.interrupt()
    path = Path(job.given["forget"])
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(dict(reversed(line.items()))) + "\n" for line in lines))
    code, said = job.unlearn("--resume")
    assert code == 0, said


# Evaluations and runs


def page_of(job: Job) -> str:
    """Make the report and return what its verdict says, its level first."""
    code, said = call("report", job.folder)
    assert code == 0, said
    html = (job.folder / "report.html").read_text()
    start = html.index('<p class="verdict ') + len('<p class="verdict ')
    return html[start : html.index("</p>", start)]


def card_of(job: Job) -> str:
    return (job.folder / "model" / "README.md").read_text()


_SCORED: list[Path] = []


@pytest.fixture
def scored(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, rows: list[Row], tokenizer: PreTrainedTokenizerBase
) -> Job:
    """A finished run with both of its evaluations, a copy of one that is made once."""
    if not _SCORED:
        made = tmp_path_factory.mktemp("scored")
        first = job_in(made, rows, tokenizer)
        for code, said in (first.unlearn(), first.evaluate("before"), first.evaluate("after")):
            assert code == 0, said
        _SCORED.append(made)
    shutil.copytree(_SCORED[0] / "run", tmp_path / "run")
    return job_in(tmp_path, rows, tokenizer)


@pytest.mark.slow
def test_evaluations_of_the_run_are_taken_and_named(scored: Job) -> None:
    verdict = page_of(scored)
    assert "No verdict" not in verdict
    assert "annot be checked" not in verdict
    assert "forget rows" in verdict
    html = (scored.folder / "report.html").read_text()
    provenance = json.loads((scored.folder / "provenance.json").read_text())
    for text in (
        "evaluation/before: of this run",
        "evaluation/after: of this run",
        provenance["read"]["model_sha256"],
        provenance["read"]["forget_sha256"],
        provenance["result"]["model_sha256"],
        provenance["result"]["adapter_sha256"],
        "3 given, 3 trained on (0 of them without an answer token), 3 scored before, 3 scored after",
        "&#39;joined&#39;, date",
        "attempt 1",
    ):
        assert text in html, text


def _edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def _after_on_other_rows(job: Job) -> None:
    _other_rows("forget")(job)
    assert job.evaluate("after")[0] == 0


def _after_of_another_run(job: Job) -> None:
    other = job.folder.with_name("other")
    assert job.unlearn("--out", other, "--seed", "5")[0] == 0
    assert job.evaluate("after", "--model", other / "model")[0] == 0


def _after_of_the_base(job: Job) -> None:
    shutil.rmtree(job.folder / "evaluation" / "after")
    shutil.copytree(job.folder / "evaluation" / "before", job.folder / "evaluation" / "after")


def _before_of_the_result(job: Job) -> None:
    shutil.rmtree(job.folder / "evaluation" / "before")
    shutil.copytree(job.folder / "evaluation" / "after", job.folder / "evaluation" / "before")


def _another_form(job: Job) -> None:
    assert job.evaluate("after", "--template", "pair")[0] == 0


def _final(job: Job) -> None:
    _edit(job.folder / "evaluation" / "after" / "results.json", lambda found: found.update(final=-3.0))


def _better(job: Job) -> None:
    path = job.folder / "evaluation" / "after" / "results.json"
    _edit(path, lambda found: found["retain"]["tasks"]["Task1"].update(regurgitation=0.123))


def _some_rows_less(job: Job) -> None:
    path = job.folder / "evaluation" / "after" / "predictions.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))


MIXED: dict[str, tuple[Callable[[Job], object], str, str]] = {
    "other rows": (_after_on_other_rows, "after", "it scored other forget rows ("),
    "the model of another run": (_after_of_another_run, "after", "it scored another model ("),
    "the base as the result": (_after_of_the_base, "after", "than the model that the run left"),
    "the result as the base": (_before_of_the_result, "before", "than the model that the run began with"),
    "another form": (_another_form, "after", "it asked the rows in form"),
    "a final score of -3": (_final, "after", "final is -3, which is not between 0 and 1"),
    "a better score": (_better, "after", "retain.tasks.Task1.regurgitation is 0.123, its predictions give"),
    "a prediction left out": (_some_rows_less, "after", "its predictions give"),
}


@pytest.mark.parametrize("what", list(MIXED))
def test_an_evaluation_that_is_not_of_the_run_gets_no_verdict(what: str, scored: Job) -> None:
    change, side, words = MIXED[what]
    change(scored)
    verdict = page_of(scored)
    assert verdict.startswith('bad" id="verdict">No verdict: ')
    assert f"evaluation/{side} does not belong to this run: " in verdict
    assert words in verdict
    assert f"evaluation/{side}: not of this run" in (scored.folder / "report.html").read_text()
    if side == "after":
        assert "| Score |" not in card_of(scored)
        assert "does not belong to this run" in card_of(scored)


def test_an_edited_evaluation_alone_is_said_to_be_edited(scored: Job) -> None:
    _better(scored)
    folder = scored.folder / "evaluation" / "after"
    assert call("report", folder)[0] == 0
    assert "These scores are not those of the evaluation" in (folder / "report.html").read_text()


def test_what_carries_no_fingerprints_cannot_be_checked(scored: Job) -> None:
    for side in ("before", "after"):
        path = scored.folder / "evaluation" / side / "results.json"
        _edit(path, lambda found: found["provenance"].pop("read"))
    assert page_of(scored).startswith('unknown" id="verdict">Cannot be checked: evaluation/')
    assert "there is no fingerprint to tell" in card_of(scored)


def test_scores_without_their_predictions_cannot_be_checked(scored: Job) -> None:
    (scored.folder / "evaluation" / "after" / "predictions.jsonl").unlink()
    verdict = page_of(scored)
    assert verdict.startswith("unknown")
    assert "whether its scores follow from its predictions, which are gone" in verdict


# How a run went


def attempts_of(job: Job) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((job.folder / "provenance.json").read_text())["attempts"]
    assert found == json.loads((job.folder / "attempts.json").read_text())
    return found


@pytest.mark.slow
def test_the_evaluation_of_an_interrupted_state_is_not_that_of_the_result(job: Job) -> None:
    job.interrupt()
    assert job.evaluate("before")[0] == job.evaluate("after")[0] == 0
    verdict = page_of(job)
    assert not verdict.startswith("good")
    assert "The run was ended early after 4 steps (signal 15)." in verdict
    assert "**Training was ended early** (signal 15, after 4 steps)" in card_of(job)
    assert "was trained to forget" not in card_of(job)
    assert job.unlearn("--resume")[0] == 0
    assert page_of(job).startswith('bad" id="verdict">No verdict: evaluation/after does not belong to this run')
    assert job.evaluate("after")[0] == 0
    assert "No verdict" not in page_of(job)
    assert "This checkpoint was trained to forget" in card_of(job)
    assert [(a["first_step"], a["last_step"], a["reason"]) for a in attempts_of(job)] == [
        (0, 4, "signal 15"),
        (4, 9, "finished"),
    ]


def test_a_run_of_no_step_trained_nothing(job: Job) -> None:
    assert job.unlearn("--time-limit-s", "0.001")[0] == 0
    assert job.evaluate("before")[0] == job.evaluate("after")[0] == 0
    verdict = page_of(job)
    assert verdict.startswith('bad" id="verdict">Nothing was trained: the run took no step (time limit of 0.001 s)')
    assert "**Nothing was trained**" in card_of(job)
    assert "was trained to forget" not in card_of(job)


def test_going_on_with_a_finished_run_adds_nothing_false(job: Job) -> None:
    assert job.unlearn()[0] == 0
    before = json.loads((job.folder / "provenance.json").read_text())
    ended = events(job.folder, "end")
    assert job.unlearn("--resume", "--cache-dir", job.folder.with_name("elsewhere"))[0] == 0
    after = json.loads((job.folder / "provenance.json").read_text())
    kept = ("command", "created_at", "result", "read", "packages")
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    costs = {name: after["result"][name] for name in ("duration_s", "peak_memory_bytes")}
    assert events(job.folder, "end") == [{**ended[0], **costs}]
    assert [(a["first_step"], a["last_step"]) for a in attempts_of(job)] == [(0, 9), (9, 9)]
    assert attempts_of(job)[0] == before["attempts"][0]
    page_of(job)
    assert "nothing was left to train after step 9" in (job.folder / "report.html").read_text()


def test_an_attempt_that_was_killed_is_known(scored: Job) -> None:
    path = scored.folder / "attempts.json"
    attempts = json.loads(path.read_text())
    killed = {**attempts[0], "first_step": 3, **dict.fromkeys(("ended", "last_step", "reason", "duration_s"))}
    path.write_text(json.dumps([*attempts, killed]))
    verdict = page_of(scored)
    assert verdict.startswith("unknown")
    assert "The run is not over" in verdict


def test_a_run_that_diverged_says_so_in_its_attempts(job: Job) -> None:
    code, said = job.unlearn("--learning-rate", "1e30", "--epochs", "40")
    assert code == 1
    assert "became NaN or infinite" in said
    last = json.loads((job.folder / "attempts.json").read_text())[-1]
    assert last["reason"] == "diverged"
    assert last["last_step"] is None
    assert not page_of(job).startswith("good")


def test_costs_of_attempts_by_hand() -> None:
    def attempt(first: int, last: int | None, seconds: float | None, peak: int | None) -> Attempt:
        return Attempt("", [], first, last_step=last, duration_s=seconds, peak_memory_bytes=peak)

    assert costs_of([]) == (0.0, 0)
    assert costs_of([attempt(0, 0, 2.0, 5)]) == (2.0, 5)
    # Killed, gone on with to step 9, and called once more when there was nothing to do.
    killed, whole, idle = attempt(0, None, None, None), attempt(3, 9, 7.5, 6), attempt(9, 9, 100.0, 99)
    assert costs_of([killed, whole, idle]) == (7.5, 6)
    assert costs_of([attempt(0, 3, 1.25, 8), whole, idle]) == (8.75, 8)
