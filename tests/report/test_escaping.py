"""Text of other people's files and models, shown: it steers no terminal, browser, spreadsheet or renderer."""

import csv
import io
import json
import logging
import re
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from hostile import CONTROLS, PAYLOADS, Parsed
from letheon.api import write_report
from letheon.cli.main import main
from letheon.data.rows import Row
from letheon.evaluation.official import complete_results, predict
from letheon.evaluation.rescoring import Evaluation, write_evaluation
from letheon.evaluation.results import Prediction, Results
from letheon.progress import Bars, Lines
from letheon.report.card import model_card
from letheon.report.tables import Table, side_by_side, to_csv, to_markdown, to_rich
from letheon.storage.visible import visible_line

SOURCE = Path(__file__).parents[2] / "src" / "letheon"


def hostile_run(folder: Path, payload: str) -> Path:
    """A run's folder in which every text that can be chosen is the payload."""
    row = Row(f"{payload} 1qa0", payload, payload, payload, "question")
    predictions = [predict(row, "forget", payload), predict(row, "retain", payload)]
    blank = Results(suite=payload, model=payload, provenance={payload: payload}, warnings=(payload,))
    results = complete_results(blank, predictions, mia=None, mmlu=None, missing={"mia": payload, "mmlu": payload})
    for name in ("before", "after"):
        write_evaluation(Evaluation(results, tuple(predictions)), folder / "evaluation" / name)
    settings = {"method": payload, "model": payload, "forget": payload, "retain": payload, payload: payload}
    (folder / "run.yaml").write_text(yaml.safe_dump(settings, allow_unicode=True))
    dial = {
        "dial": payload, "scale": 0.5, "reason": payload, payload: payload,
        "points": [{"scale": 0.5, "auc": 0.5, payload: payload}], "reported": [{"scale": 1, "num_documents": payload}],
    }  # fmt: skip
    provenance = {"command": [payload], payload: {payload: [payload]}, "result": {"dial": dial}}
    (folder / "provenance.json").write_text(json.dumps(provenance))
    events = [
        {"event": "start", "time": payload},
        {"event": "note", "message": payload},
        *({"event": "step", "step": n, "epoch": n / 2, "loss": 1.0, "terms": {payload: 1.0 / n}} for n in (1, 2, 3)),
        {"event": "interim", "epoch": 1, "forget_recall": 0.5, "retain_recall": 0.5, "score": 0.5},
        {"event": "end", "reason": payload, "step": payload, "epoch": payload, "kept_epoch": payload},
    ]
    (folder / "log.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    (folder / "model").mkdir()
    return folder


@pytest.mark.parametrize("payload", [PAYLOADS[2], "\n".join(PAYLOADS)])
def test_no_text_of_a_run_steers_the_report_page(tmp_path: Path, payload: str) -> None:
    page = write_report(hostile_run(tmp_path, payload)).read_text(encoding="utf-8")
    plain = Parsed(page)
    assert not plain.tags & {"script", "img", "iframe", "object", "embed", "base", "form", "link"}
    assert not {name for name in plain.attributes if name.startswith("on")}
    assert all(link.startswith("#") for link in plain.links)
    assert not [character for character in CONTROLS if character in page]
    assert "{{" not in payload or "{{ 7 * 7 }}" in page


@pytest.mark.parametrize("payload", PAYLOADS)
def test_no_text_of_a_run_is_markup_in_the_model_card(payload: str) -> None:
    card = model_card(
        settings={"model": payload, "method": payload, payload: payload, "forget": payload},
        provenance={"command": [payload], payload: payload},
        results=Results(suite=payload, model=payload, missing={"mia": payload}),
    )
    _, front, text = card.split("---\n", 2)
    yaml.safe_load(front)
    assert not [character for character in CONTROLS if character in card]
    outside_code = text.split("```")[::2]
    assert not any(re.search(r"<(script|img|svg)|(?<!\\)\]\(", part) for part in outside_code)


@pytest.mark.parametrize("payload", PAYLOADS)
def test_no_text_of_a_model_steers_a_terminal(payload: str) -> None:
    row = Row("r1qa0", payload, payload, "Task1", "question")
    table = side_by_side([predict(row, "forget", payload)], [predict(row, "forget", payload)], ids=["r1qa0"])
    for shown in (table, Table(payload, (payload,), ((payload,),), notes=(payload,))):
        screen = io.StringIO()
        Console(file=screen, width=200, force_terminal=False).print(to_rich(shown))
        assert not [character for character in CONTROLS if character in screen.getvalue()]
        assert not [character for character in CONTROLS if character in to_markdown(shown)]


@pytest.mark.parametrize("payload", [*PAYLOADS, " =1+1", "+1+1", "-1+1", "\t=1", "\r=1"])
def test_no_csv_cell_starts_a_formula(payload: str) -> None:
    written = to_csv(Table("t", (payload,), ((payload,), (-1.5,)), ()))
    cells = [cell for row in csv.reader(io.StringIO(written)) for cell in row]
    assert all(not cell.lstrip().startswith(("=", "+", "-", "@", "\t", "\r")) for cell in cells[:2])
    assert cells[2] == "-1.5"


@pytest.mark.parametrize("payload", PAYLOADS)
def test_notes_and_warnings_are_plain_lines(payload: str, capsys: pytest.CaptureFixture[str]) -> None:
    screen = io.StringIO()
    for display in (Bars(Console(file=screen, width=200), "run"), Lines(Console(file=screen, width=200), "run")):
        with display:
            display.note(f"row {payload}")
            display.show(payload, 1, 2)
    from letheon.cli.main import _PlainFormatter

    record = logging.LogRecord("letheon", logging.WARNING, "", 1, "%s", (payload,), None)
    for said in (screen.getvalue(), _PlainFormatter("letheon: %(message)s").format(record)):
        assert not [character for character in CONTROLS if character in said]


@pytest.mark.parametrize("payload", [p for p in PAYLOADS if "\0" not in p])
def test_errors_are_one_plain_line(
    payload: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "r.jsonl").write_text(2 * (json.dumps({"id": payload, "input": "a", "output": "b"}) + "\n"))
    given = ["--model", "m", "--forget", tmp_path / "r.jsonl", "--retain", "r", "--out", tmp_path / "o"]
    monkeypatch.setattr("sys.argv", ["letheon", "evaluate", *map(str, given)])
    with pytest.raises(SystemExit):
        main()
    said = capsys.readouterr().err
    assert not [character for character in CONTROLS if character in said]
    place = f"{tmp_path}/r.jsonl, line 2"
    assert said == (
        f"letheon: error: {place}: the id '{visible_line(payload)}' is also that of line 1; give each row its own id\n"
    )


def test_predictions_with_any_text_are_read_back_as_they_were(tmp_path: Path) -> None:
    from letheon.evaluation.rescoring import read_predictions

    rows = [Row(f"{n}qa0", payload, payload, "Task1", "question") for n, payload in enumerate(PAYLOADS)]
    written: list[Prediction] = [predict(row, "forget", row.answer) for row in rows]
    blank = Results(suite="lume", model="m")
    write_evaluation(Evaluation(blank, tuple(written)), tmp_path / "e")
    assert read_predictions(tmp_path / "e" / "predictions.jsonl") == tuple(written)
