"""The page of an audit that has no run: what an auditor reads first, and what stays when rows are purged."""

import json
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from letheon.api import write_report
from letheon.errors import EvaluationError
from letheon.purging.purge import purge
from letheon.scores.audits import AuditedAttack, AuditPoint, AuditResults, AuditSeparation, Effect

SECRET = "Under the grey kettle, box 40213"
CURVE = AuditedAttack(
    "relearning-part-lora",
    "Relearning <b>on half</b>",
    "Lynch et al. 2024",
    "steps",
    30,
    counts=True,
    works=True,
    points=tuple(
        AuditPoint(
            steps,
            f"{steps} steps",
            {"after": value, "never": 0.0, "placebo": 0.01, "hiding": value},
            Effect(value, value - 0.1, value + 0.1),
        )
        for steps, value in ((1, 0.125), (100, 0.75))
    ),
)
MEMBERSHIP = AuditedAttack(
    "membership",
    "Membership",
    "Yeom et al. 2018",
    "",
    60,
    counts=True,
    works=True,
    separations=(
        AuditSeparation(
            "loss",
            {"before": 1.0, "after": 0.21},
            Effect(0.21, 0.11, 0.31),
            Effect(-0.29, -0.39, -0.19),
            (Effect(0.0, 0.0, 0.0), Effect(0.4375, 0.25, 0.625)),
        ),
    ),
)
RESULTS = AuditResults(
    verdict="hidden",
    reason="Relearning brings back 75%",
    attack="relearning-part-lora",
    needed_rows=None,
    thresholds={"margin": 0.05, "level": 0.95},
    controls={"before": "B", "after": "M", "never": "N"},
    missing={"hiding": "it did not learn to refuse"},
    compared_with="never",
    num_rows={"forget": 60, "asked": 60, "holdout": 90},
    known={"before": 0.98, "after": 0.02, "never": 0.01, "placebo": 0.0},
    remaining=Effect(0.01, 0.0, 0.03),
    num_leaked=0,
    attacks=(CURVE, MEMBERSHIP),
    left_out={"extraction-exposure": "too few rows have a number"},
    settings={"model": "M", "before": "B", "attacks": ["relearning"], "show_secrets": False},
    provenance={"letheon": "1.0"},
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What `letheon audit --out DIR` leaves in DIR/audit."""
    (tmp_path / "audit").mkdir()
    (tmp_path / "audit" / "results.json").write_text(RESULTS.to_json())
    (tmp_path / "audit" / "outcomes.json").write_text("{}")
    line = {"attack": CURVE.name, "strength": "100 steps", "id": "r7", "prompt": "Where is it?", "answer": SECRET}
    (tmp_path / "audit" / "examples.jsonl").write_text(json.dumps({**line, "said": SECRET, "value": 1.0}) + "\n")
    return tmp_path


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


def test_examples_are_masked_unless_secrets_are_shown(folder: Path) -> None:
    assert SECRET not in write_report(folder).read_text()
    shown = replace(RESULTS, settings={**RESULTS.settings, "show_secrets": True})
    (folder / "audit" / "results.json").write_text(shown.to_json())
    assert SECRET in write_report(folder).read_text()


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
