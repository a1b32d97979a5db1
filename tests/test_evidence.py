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

from letheon.cli import cli
from letheon.data.rows import Row, read_rows, write_rows
from letheon.fingerprints import differences, hash_checkpoint, hash_values
from letheon.model.loading import save_model
from letheon.settings import UnlearnSettings, read_config
from letheon.training.run import unlearn
from running import After, knowing_model, short_run
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
        return call("evaluate", "--model", model, *rows, "--max-new-tokens", 16, "--out", out, *flags)

    def interrupt(self, after: int = 4) -> None:
        """Run until SIGTERM comes after a step."""
        stop = After(after, lambda: signal.raise_signal(signal.SIGTERM))
        assert unlearn(UnlearnSettings.of(self.given), observer=stop).exit_code == 143


@pytest.fixture
def job(tmp_path: Path, rows: list[Row], tokenizer: PreTrainedTokenizerBase) -> Job:
    """A run of 9 steps on a model that knows its rows; nothing is made yet."""
    given = {**short_run(tmp_path, rows, knowing_model(tokenizer, rows), tokenizer), "keep": "last"}
    config = tmp_path / "job.yaml"
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
    before = {path: path.read_bytes() for path in job.folder.rglob("*") if path.is_file()}
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
