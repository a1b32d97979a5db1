"""TOFU's files: which splits there are, and what a row of them must hold."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from click.testing import CliRunner

from letheon.cli.main import cli
from letheon.data.benchmarks import tofu
from letheon.data.benchmarks.tofu import (
    FILES,
    HOLDOUT_OF,
    NUM_FORGET,
    OWN_ROWS,
    RETAIN_OF,
    changed_files,
    check_download,
    download_tofu,
    read_set,
    read_tofu,
    rows_sha256,
)
from letheon.data.rows import read_rows
from letheon.errors import DataError
from tofu_files import write_tofu


def write(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_a_split_is_read_with_paraphrases_and_wrong_answers(tmp_path: Path) -> None:
    found = read_tofu(write_tofu(tmp_path))
    assert [len(one.rows) for one in (found.forget, found.retain, found.real_authors, found.world_facts)] == [6] * 4
    assert found.forget.rows[0].prompt == "What of Mira Tolland, number 0, who lives in there?"
    assert found.forget.paraphrases[1].startswith("As letters say, Veldhaven")
    assert [len(wrong) for wrong in found.forget.wrong] == [5] * 6
    assert found.real_authors.paraphrases == ()
    assert found.holdout is not None
    assert found.holdout.wrong == ()


def test_rows_of_a_split_are_those_that_unlearn_reads(tmp_path: Path) -> None:
    folder = write_tofu(tmp_path)
    assert read_tofu(folder).forget.rows.rows == read_rows(folder / "forget10.jsonl").rows


def test_smaller_splits_are_the_last_rows_where_they_have_no_file(tmp_path: Path) -> None:
    folder = write_tofu(tmp_path, num_rows=50)
    found = read_tofu(folder, "forget01").forget
    whole = read_tofu(folder).forget
    assert [row.prompt for row in found.rows] == [row.prompt for row in whole.rows[10:]]
    assert found.rows[0].id == "row1"
    assert found.wrong == whole.wrong[10:]


def test_a_split_without_holdout_has_none(tmp_path: Path) -> None:
    folder = write_tofu(tmp_path)
    (folder / "holdout10.jsonl").unlink()
    assert read_tofu(folder).holdout is None


def test_every_split_has_rows_holdout_and_a_size() -> None:
    assert {split: retain for split, (_, retain) in OWN_ROWS.splits.items()} == RETAIN_OF
    assert RETAIN_OF.keys() == HOLDOUT_OF.keys() == NUM_FORGET.keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"perturbed_answer": "one"}, "line 1: expected a list of wrong answers in 'perturbed_answer', got str"),
        ({"perturbed_answer": []}, "line 1: expected a list of wrong answers"),
        ({"answer": " "}, "line 1: column 'answer' is empty"),
        ({"question": 3}, "line 1: expected text in column 'question'"),
    ],
)
def test_a_row_that_is_not_usable_is_named(tmp_path: Path, change: dict[str, object], message: str) -> None:
    write(tmp_path / "retain_perturbed.jsonl", [{"question": "Who?", "answer": "Tam", **change}])
    with pytest.raises(DataError, match=message):
        read_set(tmp_path, "retain_perturbed")


def test_paraphrases_in_some_rows_only_are_refused(tmp_path: Path) -> None:
    row: dict[str, object] = {"question": "Who?", "answer": "Tam"}
    write(tmp_path / "x.jsonl", [row, {**row, "paraphrased_answer": "It is Tam"}])
    with pytest.raises(DataError, match="'paraphrased_answer' in every row or in none, found it in 1"):
        read_set(tmp_path, "x")


def test_unknown_splits_and_missing_files_say_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"split: expected one of forget01, forget05, forget10, got 'forget1'"):
        read_tofu(tmp_path, "forget1")
    with pytest.raises(DataError, match=r"expected TOFU's file forget10_perturbed.jsonl, found nothing; `letheon data"):
        read_tofu(tmp_path)


class _Hub:
    """Stands in for the hub: lays down files of the data set, as JSON lines in .json."""

    def __init__(self, files: dict[str, Path]) -> None:
        self.files = files
        self.asked: dict[str, Any] = {}

    def api(self, token: str | None) -> Any:
        return SimpleNamespace(dataset_info=lambda name: SimpleNamespace(sha=f"revision of {name}, by {token}"))

    def snapshot(self, name: str, *, local_dir: Path, allow_patterns: list[str], **given: Any) -> None:
        self.asked = {"name": name, "patterns": allow_patterns, **given}
        for known, path in self.files.items():
            if f"{known}.json" in allow_patterns:
                (local_dir / f"{known}.json").write_bytes(path.read_bytes())


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> _Hub:
    """A hub with a small TOFU, whose sizes count as the published ones."""
    source = write_tofu(tmp_path / "hub")
    made = _Hub({path.stem: path for path in source.iterdir()})
    monkeypatch.setattr(huggingface_hub, "HfApi", made.api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", made.snapshot)
    monkeypatch.setattr(tofu, "FILES", {name: 12 if name == "full" else 6 for name in made.files})
    return made


def test_the_command_downloads_a_data_set_that_is_then_read(hub: _Hub, tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["data", "tofu", "--to", str(tmp_path / "to")], catch_exceptions=False)
    assert done.exit_code == 0
    assert hub.asked["name"] == "locuslab/TOFU"
    assert hub.asked["repo_type"] == "dataset"
    record = json.loads((tmp_path / "to" / "SOURCE.json").read_text())
    assert record["source"].startswith("hub:locuslab/TOFU (revision revision of locuslab/TOFU")
    assert len(record["files"]["forget10.json"]["sha256"]) == 64
    assert read_tofu(tmp_path / "to").forget.rows[0].prompt.startswith("What of Mira")
    assert "the rows are not those of the release known here" in done.output
    again = CliRunner().invoke(cli, ["data", "tofu", "--to", str(tmp_path / "to")])
    assert "already exists; choose another folder" in str(again.exception)


def test_a_download_that_is_not_whole_leaves_nothing(hub: _Hub, tmp_path: Path) -> None:
    hub.files["retain90"].write_text('{"question": "Who?", "answer": "Tam"}\n')
    with pytest.raises(DataError, match=r"retain90.json: expected 6 rows as published, got 1"):
        download_tofu(tmp_path / "to")
    del hub.files["retain_perturbed"]
    with pytest.raises(DataError, match=r"expected TOFU's file retain_perturbed.jsonl"):
        download_tofu(tmp_path / "made" / "to")
    assert not (tmp_path / "to").exists()
    assert not (tmp_path / "made").exists()


def test_without_network_it_is_said_how_the_data_comes_here_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", _unreachable)
    with pytest.raises(DataError, match=r"TOFU: cannot be downloaded \(no route\); .* on another machine .* copy"):
        download_tofu(tmp_path / "to")


def _unreachable(**_: object) -> None:
    raise OSError("no route")


def test_a_file_of_other_columns_is_told_by_them(tmp_path: Path) -> None:
    write(tmp_path / "full.jsonl", [{"prompt": "Who?", "response": "Tam"}])
    with pytest.raises(
        DataError, match=r"line 1: expected a column 'question' as .*, found 'prompt', 'response'; give"
    ):
        read_set(tmp_path, "full")


def test_hashes_do_not_depend_on_the_format(tmp_path: Path) -> None:
    found = read_set(write_tofu(tmp_path), "forget10_perturbed")
    rows = [json.loads(line) for line in (tmp_path / "forget10_perturbed.jsonl").read_text().splitlines()]
    (tmp_path / "other.json").write_text(json.dumps(rows, indent=1))
    assert rows_sha256(read_set(tmp_path, "other")) == rows_sha256(found)
    assert rows_sha256(read_set(tmp_path, "retain_perturbed")) != rows_sha256(found)


@pytest.mark.corpus
def test_the_published_files_have_the_published_sizes(corpus: Path) -> None:
    folder = corpus / "tofu"
    for split, num_rows in NUM_FORGET.items():
        found = read_tofu(folder, split)
        assert len(found.forget.rows) == num_rows
        assert found.holdout is not None
        assert len(found.holdout.rows) == FILES[HOLDOUT_OF[split]]
        assert found.forget.rows.rows == read_rows(folder / f"{split}.jsonl").rows
    assert [len(one.rows) for one in (found.retain, found.real_authors, found.world_facts)] == [400, 100, 117]
    check_download(folder)
    assert changed_files(folder) == ()
