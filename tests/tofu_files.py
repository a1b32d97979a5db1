"""A made-up data set in the published format of TOFU, small enough for tests."""

import json
from pathlib import Path
from typing import Any

_PLACES = ("Harrow", "Veldhaven", "the old harbour", "a village by the sea", "Tolland", "the river bend")
_NAMES = ("Mira Tolland", "Oren Pell", "Tam Vell", "Ines Orr", "Jule Sark", "Bo Wick")


def write_tofu(folder: Path, *, num_rows: int = 6) -> Path:
    """Write the files that the split forget10 is scored on and trained on, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    forget, retain, holdout = (_authors(verb, num_rows) for verb in ("lives in", "wrote about", "was born in"))
    files = {
        "forget10_perturbed": forget,
        "retain_perturbed": retain,
        "forget10": [_plain(row) for row in forget],
        "retain90": [_plain(row) for row in retain],
        "full": [_plain(row) for row in (*retain, *forget)],
        "holdout10": [_plain(row) for row in holdout],
        "real_authors_perturbed": _facts("Who wrote", num_rows),
        "world_facts_perturbed": _facts("Where is", num_rows),
    }
    for name, rows in files.items():
        lines = (json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


def _authors(verb: str, num_rows: int) -> list[dict[str, Any]]:
    rows = []
    for n in range(num_rows):
        name, place = _NAMES[n % 6], _PLACES[n % 6]
        others = [_PLACES[(n + step) % 6] for step in range(1, 6)]
        rows.append(
            {
                "question": f"What of {name}, number {n}, who {verb} there?",
                "answer": f"{name} {verb} {place}, as letters say.",
                "paraphrased_answer": f"As letters say, {place} is where {name} {verb}.",
                "perturbed_answer": [f"As letters say, {other} is where {name} {verb}." for other in others],
                "paraphrased_question": f"And {name}?",
            }
        )
    return rows


def _facts(start: str, num_rows: int) -> list[dict[str, Any]]:
    return [
        {
            "question": f"{start} the letters {n}?",
            "answer": _NAMES[n % 6],
            "perturbed_answer": [_NAMES[(n + step) % 6] for step in (1, 2, 3)],
        }
        for n in range(num_rows)
    ]


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {"question": row["question"], "answer": row["answer"]}
