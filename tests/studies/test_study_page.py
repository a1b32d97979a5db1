"""study.html: what a study's page says, of which files, and that nothing in them steers it."""

import base64
import hashlib
import html
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import yaml
from click.testing import CliRunner
from transformers import PreTrainedTokenizerBase

from hostile import CONTROLS, PAYLOADS, Parsed
from letheon.cli.main import cli
from letheon.data.rows import Row
from letheon.errors import EvaluationError
from letheon.evaluation.suites.lume.results import FormScores, LumeResults
from letheon.purging.purge import purge
from letheon.studies.figures import study_svgs, trade_off_figure
from letheon.studies.page import write_study_page
from letheon.studies.records import RunRecord, StateScores, StudyRecord, read_study_record, write_study
from letheon.studies.run_reports import write_run_reports
from letheon.studies.spec import StudySettings
from running import knowing_model, short_run

Scores = dict[str, float]

ORIGINAL = {"task_aggregate": 0.1, "forgotten": 0.2, "retained": 0.9}


@pytest.fixture(autouse=True)
def _without_figures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the figures, which take longer to draw than all else here, unless a test is about them."""
    if "figure" not in request.node.name:
        monkeypatch.setattr("letheon.studies.figures.save_study_figures", lambda record, folder: ())
        monkeypatch.setattr("letheon.studies.figures.study_svgs", lambda record: {})
        monkeypatch.setattr("letheon.report.page.figure_svgs", lambda run: {})


def runs(label: str, by_seed: Sequence[Scores | None], **changed: Any) -> list[RunRecord]:
    return [
        RunRecord(
            name=f"{label}, seed {seed}",
            identity=f"{label}-{seed}",
            folder=f"runs/{label}-{seed}",
            configuration=label,
            values=dict(zip(("gamma", "delta"), label, strict=False)),
            seed=seed,
            role="study",
            state="finished" if scores else "diverged",
            reason="finished" if scores else "step 2: loss is not finite",
            states=(StateScores(20, True, scores),) if scores else (),
            **changed,
        )
        for seed, scores in enumerate(by_seed)
    ]


def record_of(*found: list[RunRecord], original: Scores | None = ORIGINAL, **study: Any) -> StudyRecord:
    before = {} if original is None else {"m": StateScores(0, False, original)}
    settings = StudySettings.of({"name": "s", "base": {"model": "M", "forget": "F"}, "evaluate": {}, **study})
    return StudyRecord(settings, tuple(run for one in found for run in one), before)


def scores(forgotten: float, *aggregates: float) -> list[Scores | None]:
    return [{"task_aggregate": value, "forgotten": forgotten, "retained": 0.8} for value in aggregates]


def page_of(record: StudyRecord, folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    write_study(record, folder)
    return write_study_page(folder).read_text(encoding="utf-8")


def fill(record: StudyRecord, folder: Path, **provenance: Any) -> None:
    """Write what the runs' folders hold of them."""
    for run in record.runs:
        path = folder / run.folder
        path.mkdir(parents=True, exist_ok=True)
        (path / "run.yaml").write_text(yaml.safe_dump({"rank": 7, "epochs": 20, "gamma": run.configuration}))
        given = {"model": {"sha256": "abc123"}, "form": {"template": "pair"}, "packages": {"torch": "9.9"}}
        (path / "provenance.json").write_text(json.dumps({**given, "result": {"sha256": "f" * 64}, **provenance}))


def text_of(page: str) -> str:
    """What a reader sees of it, as one line."""
    return html.unescape(" ".join(re.sub(r"<[^>]+>", " ", page.split("<main>")[1]).split()))


def verdict_in(page: str) -> tuple[str, str]:
    found = re.search(r'<p class="verdict (\w+)" id="verdict">(.*?)</p>', page)
    assert found is not None
    return found[1], found[2]


def test_the_page_says_where_the_numbers_come_from(tmp_path: Path) -> None:
    record = record_of(runs("a", scores(0.97, 0.5, 0.6)), runs("b", [*scores(0.3, 0.4), None]))
    fill(record, tmp_path)
    page = page_of(record, tmp_path)
    seen = text_of(page)
    assert "model.sha256 abc123" in seen
    assert "packages.torch 9.9" in seen
    assert "form.template pair" in seen
    assert "Runs trained on their rows in form 'pair': 4." in seen
    assert "rank 7 5 epochs 20 20" in seen  # value and default; the one that differs first
    assert seen.index("Figures" if "Figures" in seen else "Tables") < seen.index("What was asked")
    assert "b, seed 1 diverged" in seen
    assert "step 2: loss is not finite" in seen
    assert "ffffffffffff" in seen
    assert verdict_in(page) == ("unknown", "1 of 2 configurations forgot the forget rows; 1 of 4 runs have no result.")


def test_values_that_differ_between_runs_are_all_said(tmp_path: Path) -> None:
    record = record_of(runs("a", scores(0.97, 0.5, 0.6, 0.7)))
    fill(record, tmp_path)
    path = tmp_path / record.runs[2].folder / "provenance.json"
    path.write_text(path.read_text().replace("abc123", "other"))
    seen = text_of(page_of(record, tmp_path))
    assert "model.sha256 abc123 (2 of 3 runs); other (1 of 3 runs)" in seen


def test_runs_are_linked_to_their_report_or_folder_and_nowhere_else(tmp_path: Path) -> None:
    record = record_of(runs("a b%", scores(0.97, 0.5, 0.6)), runs("gone", scores(0.97, 0.5)))
    folder = tmp_path / "study"
    fill(record_of(list(record.runs[:2])), folder)
    (folder / record.runs[0].folder / "report.html").touch()
    (tmp_path / "elsewhere").mkdir()
    outside = [
        replace(record.runs[2], folder=place, identity=place)
        for place in ("../elsewhere", str(tmp_path / "elsewhere"), "javascript:alert(1)", ".", "")
    ]
    page = page_of(replace(record, runs=(*record.runs, *outside)), folder)
    links = [link for link in Parsed(page).links if not link.startswith("#")]
    assert [unquote(link) for link in links] == ["runs/a b%-0/report.html", "runs/a b%-1"]
    assert all((folder / unquote(link)).exists() for link in links)
    assert not any(":" in link or link.startswith("/") for link in links)


def test_nothing_is_bold_where_nothing_was_forgotten(tmp_path: Path) -> None:
    kept = record_of(runs("a", scores(0.2, 0.9, 0.95)), runs("b", scores(0.4, 0.5, 0.52)))
    page = page_of(kept, tmp_path)
    assert "<b>" not in page
    level, sentence = verdict_in(page)
    assert level == "bad"
    assert sentence == "None of 2 configurations forgot the forget rows: the most that is gone is 25% (b)."  # .8 to .6
    forgot = record_of(runs("a", scores(0.2, 0.9, 0.95)), runs("b", scores(0.97, 0.5, 0.52)))
    assert len(re.findall("<b>", page_of(forgot, tmp_path))) >= 1


def test_rows_that_were_not_known_are_never_a_success(tmp_path: Path) -> None:
    unknown = runs("a", scores(0.99, 0.9, 0.95), unknown=("forget",))
    page = page_of(record_of(unknown), tmp_path)
    assert verdict_in(page)[0] == "bad"
    assert "did not know its rows before the first step" in verdict_in(page)[1]
    assert text_of(page).count("(rows not known)") >= 3  # its row in the tables, both runs
    assert "<b>" not in page
    mixed = page_of(record_of(unknown, runs("b", scores(0.97, 0.1, 0.2))), tmp_path)
    assert "1 of 2 configurations forgot the forget rows; of 1 it cannot be said" in verdict_in(mixed)[1]


def test_what_could_not_be_compared_is_said(tmp_path: Path) -> None:
    record = record_of(runs("a", scores(0.97, 0.5)), original=None, published={"theirs": {"final": 0.2}})
    seen = text_of(page_of(record, tmp_path))
    assert "It cannot be said what was forgotten: the model before unlearning was not scored on these rows." in seen
    assert "No two configurations share two seeds" in seen
    assert "Published scores were taken elsewhere" in seen
    assert "No run has recorded its provenance" in seen


def test_evaluations_that_are_not_of_their_run_are_counted_by_what_differs(tmp_path: Path) -> None:
    record = record_of(runs("a", scores(0.97, 0.5, 0.6, 0.7)))
    read = {"forget_sha256": "one", "retain_sha256": "same", "template": "pair"}
    fill(record, tmp_path, read=read, result={"model_sha256": "left"})
    changes: tuple[dict[str, str], ...] = ({"forget_sha256": "other"}, {}, {"model_sha256": "another"})
    for run, changed in zip(record.runs, changes, strict=True):
        provenance = {"read": {**read, "model_sha256": "left", **changed}}
        form = FormScores("pair", "2024-07-26", "the run", differs=False)
        results = tmp_path / run.folder / "evaluation" / "after" / "results.json"
        results.parent.mkdir(parents=True)
        results.write_text(LumeResults("lume", "m", provenance=provenance, form=form).to_json())
    seen = text_of(page_of(record, tmp_path))
    said = "Runs whose evaluation is not of their own result, rows and form: 1, since"
    assert f"{said} it scored other forget rows (other) than the run read (one)." in seen
    assert f"{said} it scored another model (another) than the model that the run left (left)." in seen
    assert seen.count(said) == 2


def test_a_study_without_any_result_says_so(tmp_path: Path) -> None:
    waiting = [replace(run, state="elsewhere", reason="another process is at it") for run in runs("a", [None, None])]
    page = page_of(record_of(waiting), tmp_path)
    assert verdict_in(page) == ("unknown", "Nothing has been scored: none of 2 runs has a result.")
    assert "elsewhere" in text_of(page)
    assert "Nothing has been scored: none of 0 runs" in page_of(record_of(), tmp_path)


def test_a_broken_file_of_a_run_is_named_and_the_rest_is_shown(tmp_path: Path) -> None:
    record = record_of(runs("a", scores(0.97, 0.5, 0.6)))
    fill(record, tmp_path)
    (tmp_path / record.runs[0].folder / "provenance.json").write_text("{")
    seen = text_of(page_of(record, tmp_path))
    assert "Could not be read: " in seen
    assert "a-0/provenance.json: expected a mapping" in seen
    assert "model.sha256 abc123" in seen


def test_only_the_folder_of_a_study_has_a_page(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="folder of a study"):
        write_study_page(tmp_path)
    assert not (tmp_path / "study.html").exists()


@pytest.mark.parametrize("payload", [*PAYLOADS, "\n".join(PAYLOADS)])
def test_no_text_of_a_study_steers_its_page(tmp_path: Path, payload: str) -> None:
    record = record_of(runs(payload, [*scores(0.97, 0.5, 0.6), None], notes=(payload,)), name=payload.replace("\0", ""))
    places = [replace(run, folder=f"runs/{number}") for number, run in enumerate(record.runs)]
    record = replace(record, runs=tuple(replace(run, reason=payload) for run in places))
    fill(record, tmp_path, **{"machine": {payload: payload}, "result": {"sha256": payload}})
    page = page_of(record, tmp_path)
    plain = Parsed(page)
    assert not plain.tags & {"script", "img", "iframe", "object", "embed", "base", "form", "link"}
    assert not {name for name in plain.attributes if name.startswith("on")}
    assert all(link.startswith(("#", "runs/")) for link in plain.links)
    assert not [character for character in CONTROLS if character in page]


def test_the_style_sheet_is_the_one_that_is_allowed(tmp_path: Path) -> None:
    page = page_of(record_of(), tmp_path)
    (css,) = re.findall(r"<style>(.*?)</style>", page, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; style-src-elem 'sha256-{digest}'" in page


def test_figures_come_first_and_need_nothing_that_a_page_may_not_load(tmp_path: Path) -> None:
    labels = ("ax", "ay", "bx", "by")
    record = record_of(*(runs(label, scores(0.97, 0.5, 0.6)) for label in labels))
    assert set(study_svgs(record)) == {"trade-off", "settings", "seeds"}
    page = page_of(record, tmp_path)
    assert page.count("<figure>") == 3
    assert "<image" not in page
    assert page.index("<svg") < page.index("<table>")
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_a_figure_has_no_front_of_rows_that_were_not_known() -> None:
    unknown = runs("a", scores(0.99, 0.9, 0.95), unknown=("forget",))
    drawn = [trade_off_figure(record_of(unknown, *more)) for more in ((), (runs("b", scores(0.5, 0.1, 0.2)),))]
    labels = [[text.get_text() for text in one.legends[0].get_texts()] for one in drawn if one is not None]
    assert labels[0][0] == "a (rows not known)"
    assert labels[1][0] == "Pareto front of means"


@pytest.fixture
def study(tmp_path: Path, rows: list[Row], tokenizer: PreTrainedTokenizerBase) -> tuple[Path, list[str]]:
    """A study file of one run that forgets, one that does not and one that diverges, and the command that runs it."""
    given = short_run(tmp_path, rows, knowing_model(tokenizer, rows), tokenizer)
    base = {
        **{name: value for name, value in given.items() if name not in ("out", "evaluate")},
        "epochs": 6,
        "keep": "last",
        "target_modules": ["q_proj", "v_proj"],
    }
    values = {
        "base": base,
        "grid": {"learning_rate": [1e-5, 2e-2, 1e30]},
        "seeds": 2,
        "evaluate": {"max_new_tokens": 32},
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values))
    return tmp_path / "study", ["study", str(tmp_path / "mine.yaml"), "--out", str(tmp_path / "study")]


@pytest.mark.slow
def test_a_study_leaves_its_page_and_its_runs_reports(study: tuple[Path, list[str]], rows: list[Row]) -> None:
    out, command = study
    assert CliRunner().invoke(cli, command, catch_exceptions=False).exit_code == 1  # two of its runs diverge
    page = (out / "study.html").read_text()
    assert verdict_in(page)[1].startswith("1 of 3 configurations forgot the forget rows; 2 of 6 runs have no result")
    links = [unquote(link) for link in Parsed(page).links if link.endswith("report.html")]
    assert len(links) == 4
    levels = {link: verdict_in((out / link).read_text()) for link in links}
    assert sorted(level for level, _ in levels.values()) == ["bad", "bad", "good", "good"]
    assert all("their mean score went from 1.000" in sentence for _, sentence in levels.values())
    assert all((out / link).stat().st_mode & 0o777 == 0o600 for link in links)
    assert not any(row.answer in page for row in rows if len(row.answer) > 12)
    record = read_study_record(out)
    sha256 = json.loads((out / record.runs[0].folder / "provenance.json").read_text())["model"]["sha256"]
    assert sha256 in page
    assert "Task score" in page

    (out / "study.html").unlink()
    times = {link: (out / link).stat().st_mtime_ns for link in links}
    assert CliRunner().invoke(cli, ["study", "--out", str(out), "--report-only"], catch_exceptions=False).exit_code == 0
    assert (out / "study.html").read_text() == page
    assert CliRunner().invoke(cli, command, catch_exceptions=False).exit_code == 1
    assert {link: (out / link).stat().st_mtime_ns for link in links} == times

    assert "f1sc1" in page  # among the rows on which a run diverged
    purge(out, note=lambda text: None)
    purged = (out / "study.html").read_text()
    assert not any(row.id in purged for row in rows)
    assert "removed by letheon purge" in purged
    assert not any(row.answer in path.read_text() for path in out.rglob("report.html") for row in rows[:1])


@pytest.fixture
def one_run(study: tuple[Path, list[str]]) -> Path:
    """The folder of a study's only run, which forgets."""
    out, command = study
    one = [*command, "--set", "grid={}", "--set", "seeds=1", "--set", "learning_rate=2e-2"]
    assert CliRunner().invoke(cli, one, catch_exceptions=False).exit_code == 0
    (run,) = read_study_record(out).runs
    return out / run.folder


def original_of(run: Path) -> Path:
    (results,) = (run.parent.parent / "original").glob("*/results.json")
    return results


def report_again(run: Path) -> str:
    assert CliRunner().invoke(cli, ["report", str(run)], catch_exceptions=False).exit_code == 0
    return (run / "report.html").read_text()


def test_a_report_that_is_written_again_keeps_the_studys_original(one_run: Path) -> None:
    first = (one_run / "report.html").read_text()
    assert "their mean score went from 1.000" in verdict_in(first)[1]
    assert f"../../original/{original_of(one_run).parent.name}: of this run" in text_of(first)
    assert report_again(one_run) == first


def test_a_purged_run_keeps_its_verdict_and_shows_no_rows_of_the_studys_original(
    one_run: Path, rows: list[Row]
) -> None:
    found = purge(one_run, note=lambda text: None)
    assert any("what the model before unlearning said" in line for line in found.remains)
    page = (one_run / "report.html").read_text()
    assert "their mean score went from 1.000" in verdict_in(page)[1]
    assert (original_of(one_run).parent / "predictions.jsonl").is_file()
    assert not any(row.answer in page for row in rows if len(row.answer) > 12)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_sha256": "0" * 64, "weights_sha256": "0" * 64}, "it scored another model (000000000000)"),
        ({"forget_sha256": "0" * 64}, "it scored other forget rows (000000000000)"),
    ],
)
def test_an_original_of_other_weights_or_rows_is_not_taken_for_the_state_before(
    one_run: Path, change: dict[str, str], said: str
) -> None:
    path = original_of(one_run)
    changed = json.loads(path.read_text())
    changed["provenance"]["read"] |= change
    path.write_text(json.dumps(changed))
    out = one_run.parent.parent
    write_run_reports(read_study_record(out), out)
    for page in ((one_run / "report.html").read_text(), report_again(one_run)):
        level, sentence = verdict_in(page)
        assert level == "bad"
        assert "went from" not in sentence
        assert said in sentence
        assert f"{path.parent.name}: not of this run" in text_of(page)


def test_an_original_in_another_form_is_not_taken_for_the_state_before(one_run: Path) -> None:
    path = original_of(one_run)
    changed = json.loads(path.read_text())
    changed["form"]["template"] = "pair"
    path.write_text(json.dumps(changed))
    assert "it asked the rows in form &#39;pair&#39;" in verdict_in(report_again(one_run))[1]


def test_a_run_elsewhere_has_no_original(one_run: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "deep" / "run"
    moved.parent.mkdir(parents=True)
    one_run.rename(moved)
    assert "without the scores before" in verdict_in(report_again(moved))[1]
