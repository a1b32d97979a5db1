"""The page of an audit that has no run: what an auditor reads first, and what stays when rows are purged."""

import json
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from audit_files import RESULTS, SECRET, write_audit
from letheon.api import write_report
from letheon.errors import EvaluationError
from letheon.purging.purge import purge


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What `letheon audit --out DIR` leaves in DIR/audit."""
    return write_audit(tmp_path)


@pytest.mark.parametrize("place", [".", "audit"])
def test_it_is_written_for_the_folder_given_as_out_and_for_that_of_the_audit(folder: Path, place: str) -> None:
    page = write_report(folder / place)
    assert page == folder / "audit" / "report.html"
    assert stat.S_IMODE(page.stat().st_mode) == 0o600
    text = page.read_text()
    assert text.index("hidden: Relearning brings back 75%.") < text.index("<table>")
    for column in ("before", "unlearned", "never knew", "placebo rows", "recovery"):
        assert f">{column}</th>" in text
    assert "0.750" in text  # of the attacked model, at the strength that brings back most
    assert "Relearning &lt;b&gt;on half&lt;/b&gt;" in text
    assert "<svg" in text
    assert "found as dear" in text
    assert "0.438" in text
    assert "too few rows" in text
    assert "no such model: it did not learn to refuse" in text


def test_a_control_of_rounding_alone_is_no_column_but_is_named(folder: Path) -> None:
    hides = {"hiding-until-rounded": "the model before, trained for 50 steps"}
    changed = replace(
        RESULTS,
        controls={**RESULTS.controls, **hides},
        known={**RESULTS.known, "hiding-until-rounded": 0.1},
    )
    (folder / "audit" / "results.json").write_text(changed.to_json())
    text = write_report(folder).read_text()
    assert "hides until rounded" in text
    assert "trained for 50 steps" in text
    assert '<th scope="col" class="number">hides until rounded' not in text


def test_notes_shares_and_the_height_of_the_curve_are_told(folder: Path) -> None:
    text = write_report(folder).read_text()
    assert "training broke &lt;i&gt;down&lt;/i&gt;" in text
    assert "share of what the model before gives, at most 1: 1 steps 0.13, 100 steps 0.77" in text
    assert "mean height of the recovery over the logarithm of strength: 0.44 (0.25 to 0.62)" in text


def test_results_of_earlier_audits_are_read(folder: Path) -> None:
    """Those that know neither shares, nor heights of recoveries, nor documents."""
    path = folder / "audit" / "results.json"
    plain = json.loads(path.read_text())
    for attack in plain["attacks"]:
        del attack["area_recovery"]
        for point in attack["points"]:
            del point["of_before"]
    path.write_text(json.dumps(plain))
    assert "What attacks noted" in write_report(folder).read_text()


def test_examples_are_masked_unless_secrets_are_shown(folder: Path) -> None:
    assert SECRET not in write_report(folder).read_text()
    shown = replace(RESULTS, settings={**RESULTS.settings, "show_secrets": True})
    (folder / "audit" / "results.json").write_text(shown.to_json())
    assert SECRET in write_report(folder).read_text()


def test_how_many_documents_the_rows_are_of_is_told_where_they_share_one(folder: Path) -> None:
    assert "60 of 60 forget rows<" in write_report(folder).read_text()
    shared = replace(RESULTS, num_rows={**RESULTS.num_rows, "documents": 20})
    (folder / "audit" / "results.json").write_text(shared.to_json())
    assert "60 of 60 forget rows, of 20 documents<" in write_report(folder).read_text()


def test_the_same_files_give_the_same_page(folder: Path) -> None:
    assert write_report(folder).read_bytes() == write_report(folder).read_bytes()


def test_purge_writes_it_again_without_examples(folder: Path) -> None:
    page = write_report(folder)
    assert "r7" in page.read_text()
    purge(folder, note=lambda _: None)
    assert "r7" not in page.read_text()
    assert "hidden: Relearning" in page.read_text()


def test_a_folder_with_neither_a_run_nor_an_audit_has_nothing_to_report(tmp_path: Path) -> None:
    (tmp_path / "audit").mkdir()
    with pytest.raises(EvaluationError):
        write_report(tmp_path)
