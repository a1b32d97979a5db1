"""Texts that would steer a browser, a terminal or a spreadsheet, and what a browser would make of a page."""

import json
from html.parser import HTMLParser
from pathlib import Path

import yaml

from letheon.data.rows import Row
from letheon.evaluation.predicting import predict
from letheon.evaluation.rescoring import write_evaluation
from letheon.evaluation.suites.lume.official import complete_results
from letheon.evaluation.suites.lume.results import LumeResults
from letheon.scores.results import Evaluation

PAYLOADS = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</style><svg onload=alert(1)>",
    "{{ 7 * 7 }}{% include 'x' %}",
    "javascript:alert(1)",
    "[click](javascript:alert(1)) ![x](http://evil.example/x.png)",
    "\x1b[2J\x1b[31mred\x1b]0;title\x07\x1b]8;;http://evil.example\x07link",
    "\x9b31m\r\b\b\bover",
    "safe\u202egnp.exe\u2066\u200b\ufeff",
    '=HYPERLINK("http://evil.example")',
    "@SUM(1+1)*cmd|' /C calc'!A0",
    "| cell | `code` \n\n# heading\n---",
    "line\u2028separator\u0085\x00",
]
CONTROLS = [chr(c) for c in (*range(9), 11, 12, *range(14, 32), 0x7F, 0x9B, 0x202E, 0x2066, 0x200B, 0xFEFF, 0x2028)]


class Parsed(HTMLParser):
    """What a browser would make of a page: its tags with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.links += [value or "" for name, value in attrs if name in ("href", "src", "action", "xlink:href")]


def hostile_run(folder: Path, payload: str) -> Path:
    """A run's folder in which every text that can be chosen is the payload."""
    row = Row(f"{payload} 1qa0", payload, payload, payload, "question")
    predictions = [predict(row, "forget", payload), predict(row, "retain", payload)]
    blank = LumeResults(suite=payload, model=payload, provenance={payload: payload}, warnings=(payload,))
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
