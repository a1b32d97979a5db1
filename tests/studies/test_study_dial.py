"""The dial in studies: a setting like others, its scale beside the scores, its result put together again."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerBase

from letheon import StudySettings, api
from letheon.data.rows import Row
from letheon.report.files import read_run
from letheon.studies.states import checkpoint_of, states_of
from letheon.studies.tables import runs_data, scores_table
from running import knowing_model, same, short_run


@pytest.fixture
def study_settings(tmp_path: Path, rows: list[Row], tokenizer: PreTrainedTokenizerBase) -> StudySettings:
    """Each dial and no dial, one seed each."""
    holdout = tmp_path / "unseen.jsonl"
    texts = [f"A heron stood in {n} shallow waters until noon." for n in range(6)]
    holdout.write_text("".join(json.dumps({"document": text}) + "\n" for text in texts))
    given = short_run(tmp_path, rows, knowing_model(tokenizer, rows), tokenizer)
    base = {name: value for name, value in given.items() if name != "out"} | {"keep": "last", "holdout": str(holdout)}
    grid = {"dial": ["none", "membership", "forgotten"]}
    values: dict[str, Any] = {"name": "dials", "base": base, "grid": grid, "seeds": 1}
    return StudySettings.of({**values, "evaluate": {"max_new_tokens": 2}})


@pytest.fixture(autouse=True)
def _without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("letheon.studies.figures.save_study_figures", lambda record, folder: ())
    monkeypatch.setattr("letheon.studies.figures.study_svgs", lambda record: {})
    monkeypatch.setattr("letheon.report.page.figure_svgs", lambda run: {})


def scale_in(folder: Path) -> float | None:
    dial = json.loads((folder / "provenance.json").read_text())["result"].get("dial")
    return None if dial is None else dial["scale"]


@pytest.mark.slow
def test_the_dial_is_a_setting_and_its_scale_a_column(study_settings: StudySettings, tmp_path: Path) -> None:
    out = tmp_path / "study"
    record = api.study(study_settings, out).record
    runs = {str(run.values["dial"]): run for run in record.runs}
    assert {run.state for run in record.runs} == {"finished"}
    scales = {name: scale_in(out / run.folder) for name, run in runs.items()}
    assert scales == {name: run.scale for name, run in runs.items()}
    assert scales["none"] is None
    assert scales["membership"] is not None
    lines = list(csv.DictReader((out / "tables" / "runs.csv").read_text(encoding="utf-8").splitlines()))
    assert {line["dial"]: line["scale"] for line in lines} == {
        name: "" if scale is None else str(scale) for name, scale in scales.items()
    }
    table = scores_table(record)
    shown = {row[0]: row[table.columns.index("Scale")] for row in table.rows}
    assert shown["dial=forgotten"] == f"{scales['forgotten']:.3f}"
    assert shown["dial=none"] is None
    # What is shown of the run itself is of the state at the scale.
    kept = json.loads((out / runs["forgotten"].folder / "provenance.json").read_text())["result"]["kept"]
    found = runs["forgotten"].result
    assert found is not None
    assert found.scores["interim.retained"] == kept["retain_recall"]


def test_a_study_without_a_dial_has_no_such_column(study_settings: StudySettings, tmp_path: Path) -> None:
    changed = study_settings.model_copy(update={"grid": {"dial": ("none",)}})
    record = api.study(changed, tmp_path / "study").record
    assert "scale" not in runs_data(record).columns
    assert "Scale" not in scores_table(record).columns


@pytest.mark.slow
def test_a_result_whose_model_was_dropped_is_put_together_at_its_scale(
    study_settings: StudySettings, tmp_path: Path
) -> None:
    out = tmp_path / "study"
    kept = api.study(study_settings.model_copy(update={"keep_models": True}), out).record
    for run in kept.runs:
        folder = out / run.folder
        assert read_run(folder).after is not None  # the evaluation is of this result
        weights = load_file(folder / "model" / "model.safetensors")
        (folder / "model").rename(folder / "elsewhere")
        (state,) = states_of(folder, epochs=())[0]
        with checkpoint_of(folder, state) as checkpoint:
            assert same(load_file(checkpoint / "model.safetensors"), weights), run.name
