"""A suite's reader in data/benchmarks is all that settings and `letheon data` need to know of it."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from letheon.cli.main import cli
from letheon.data import benchmarks
from letheon.errors import SettingsError
from letheon.settings import DEFAULT_DATE, EvaluateSettings, MemorizeSettings, UnlearnSettings
from letheon.settings.suites import brings_rows, files_of

READER = '''
"""The made-up benchmark of leaves."""

from letheon.data.benchmarks.downloading import Download
from letheon.settings.suites import SuiteFiles

OWN_ROWS = SuiteFiles({"autumn": ("fallen", "hanging"), "winter": ("all", "none")}, whole="tree")


def fetch(folder, corpus):
    folder.mkdir()
    (folder / f"{corpus}.jsonl").write_text("")
    return (folder / f"{corpus}.jsonl",)


DOWNLOAD = Download("Fetch leaves.", fetch, ("oak", "elm"), lambda folder: f"{folder.name} is no tree")
'''


@pytest.fixture(autouse=True)
def _leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put a reader where those of the others are."""
    folder = tmp_path / "readers"
    folder.mkdir()
    (folder / "leaves.py").write_text(READER)
    monkeypatch.setattr(benchmarks, "__path__", [*benchmarks.__path__, str(folder)])
    yield
    sys.modules.pop(f"{benchmarks.__name__}.leaves", None)


def test_commands_take_the_rows_that_the_reader_names(tmp_path: Path) -> None:
    given = {"model": "m", "out": "o", "suite": "leaves", "data": str(tmp_path)}
    (tmp_path / "fallen.parquet").touch()
    for settings in (UnlearnSettings.of(given), EvaluateSettings.of(given)):
        assert (settings.forget, settings.retain) == (str(tmp_path / "fallen.parquet"), str(tmp_path / "hanging.jsonl"))
    assert UnlearnSettings.of({**given, "split": "winter"}).retain == str(tmp_path / "none.jsonl")
    learnt = {"out": "o", "suite": "leaves", "data": str(tmp_path)}
    assert MemorizeSettings.of(learnt).rows == (str(tmp_path / "tree.jsonl"),)
    assert MemorizeSettings.of({**learnt, "split": "autumn"}).rows == (str(tmp_path / "hanging.jsonl"),)
    with pytest.raises(
        SettingsError, match=r"split: expected one of autumn, winter, got 'wintr' \(did you mean 'winter'"
    ):
        UnlearnSettings.of({**given, "split": "wintr"})
    with pytest.raises(SettingsError, match=r"suite: expected one with rows to learn \(tofu, leaves\), got 'wmdp'"):
        MemorizeSettings.of({"out": "o", "suite": "wmdp"})


def test_a_suite_without_rows_to_train_on_leaves_them_to_be_given(tmp_path: Path) -> None:
    given = {"model": "m", "out": "o", "suite": "wmdp", "data": str(tmp_path)}
    assert EvaluateSettings.of(given).forget == str(tmp_path)
    with pytest.raises(SettingsError, match="forget: unlearn needs this setting"):
        UnlearnSettings.of(given)
    assert UnlearnSettings.of({**given, "forget": "f", "retain": "r"}).date == DEFAULT_DATE


def test_a_misspelt_suite_is_named_and_not_the_rows_that_it_would_have_brought() -> None:
    with pytest.raises(SettingsError, match=r"^suite: expected one of .*got 'wmpd' \(did you mean 'wmdp'\?\)$"):
        EvaluateSettings.of({"model": "m", "out": "o", "suite": "wmpd"})
    given = {"model": "m", "out": "o", "suite": "leafs", "forget": "f", "retain": "r"}
    assert EvaluateSettings.of(given).suite == "leafs"


def test_names_that_are_no_reader_bring_no_rows() -> None:
    assert brings_rows("leaves")
    for name in ("lume", "os", "../leaves", "downloading", "", None, 3):
        assert files_of(name) is None


def test_data_downloads_what_the_reader_declares(tmp_path: Path) -> None:
    listed = CliRunner().invoke(cli, ["data", "--help"]).output
    assert "leaves" in listed
    assert "Fetch leaves." in listed
    done = CliRunner().invoke(cli, ["data", "leaves", "--to", str(tmp_path / "to"), "--corpus", "elm"])
    assert done.exit_code == 0
    assert str(tmp_path / "to" / "elm.jsonl") in done.output
    assert "letheon: to is no tree" in done.output
    refused = CliRunner().invoke(cli, ["data", "leaves", "--to", "x", "--corpus", "ash"])
    assert "'ash' is not one of 'oak', 'elm'" in refused.output
    assert "No such command 'leave'" in CliRunner().invoke(cli, ["data", "leave"]).output
