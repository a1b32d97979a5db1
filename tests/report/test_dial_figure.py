"""The dial on a run's page: its figure and what is said of it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from letheon.report.dial_figure import dial_facts, dial_figure
from letheon.report.figures import figure_svgs
from letheon.report.files import flat_items, read_run
from letheon.report.page import write_report

POINTS = [
    {"scale": 0.0, "auc": 1.0, "forget_recall": 1.0, "retain_recall": 1.0, "text_loss": 5.8},
    {"scale": 0.7, "auc": 0.52, "forget_recall": 0.1, "retain_recall": 0.9, "text_loss": 6.1},
    {"scale": 1.0, "auc": 0.1, "forget_recall": 0.0, "retain_recall": 0.8, "text_loss": 6.5},
]
DIAL = {
    "dial": "membership", "scale": 0.7, "reason": None, "points": POINTS,
    "reported": [{"scale": 0.7, "num_documents": 58, "auc": 0.487, "membership": 0.974, "text_loss": 6.01}],
}  # fmt: skip


def run_with(folder: Path, dial: Any) -> Any:
    (folder / "run.yaml").write_text("method: ga\n")
    (folder / "log.jsonl").write_text('{"event": "end", "reason": "finished", "step": 3, "epoch": 1}\n')
    (folder / "provenance.json").write_text(json.dumps({"result": {"dial": dial}}))
    return read_run(folder)


def curves(run: Any) -> dict[str, list[list[float]]]:
    figure = dial_figure(run)
    assert figure is not None
    lines = [line for axes in figure.axes for line in axes.get_lines()]
    return {str(line.get_label()): np.asarray(line.get_xydata()).tolist() for line in lines}


def test_each_measured_curve_is_drawn_over_the_scale_and_the_chosen_one_marked(tmp_path: Path) -> None:
    found = curves(run_with(tmp_path, DIAL))
    assert found["AUC (0.5 is best)"] == [[0.0, 1.0], [0.7, 0.52], [1.0, 0.1]]
    assert found["forgotten: 1 - forget recall"] == [[0.0, 0.0], [0.7, 0.9], [1.0, 1.0]]
    assert found["retained: retain recall"] == [[0.0, 1.0], [0.7, 0.9], [1.0, 0.8]]
    assert found["loss of unseen text"] == [[0.0, 5.8], [0.7, 6.1], [1.0, 6.5]]
    assert [x for x, _ in found["chosen: scale 0.7"]] == [0.7, 0.7]


def test_without_documents_there_is_no_auc_and_no_loss(tmp_path: Path) -> None:
    points = [{**point, "auc": None, "text_loss": None} for point in POINTS]
    found = curves(run_with(tmp_path, {**DIAL, "points": points}))
    assert found.keys() == {"forgotten: 1 - forget recall", "retained: retain recall", "chosen: scale 0.7"}


def test_the_page_says_what_was_chosen_and_shows_it(tmp_path: Path) -> None:
    run = run_with(tmp_path, DIAL)
    assert dial_facts(run) == (
        ("dial", "scale 0.7, chosen by membership"),
        (
            "dial at scale 0.7",
            "AUC 0.487, loss of unseen text 6.010 nats a token, on 58 documents by which nothing was chosen",
        ),
    )
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "scale 0.7, chosen by membership" in page
    assert "AUC, forgotten, retained and the loss of unseen text over the scale" in page
    staying = run_with(tmp_path, {**DIAL, "reason": "no scale is within the budgets", "scale": 1.0})
    assert dial_facts(staying)[0][1].endswith("it stays at 1: no scale is within the budgets")


@pytest.mark.parametrize("dial", [None, {}, [], "x", {"points": None, "scale": "x"}, {"points": [1, {"scale": True}]}])
def test_a_run_without_a_dial_or_with_a_broken_one_has_no_figure(tmp_path: Path, dial: Any) -> None:
    run = run_with(tmp_path, dial)
    assert "dial" not in figure_svgs(run)
    assert dial_facts(run) == ()


def test_a_list_of_mappings_is_told_by_its_length() -> None:
    assert dict(flat_items({"a": {"points": POINTS, "names": ["x", "y"], "none": []}})) == {
        "a.points": "3 entries", "a.names": "x, y", "a.none": "none",
    }  # fmt: skip
