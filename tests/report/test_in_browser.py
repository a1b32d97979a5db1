"""report.html and study.html in a real browser: quiet, inert, legible, and no wider than the window."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from audit_files import write_audit
from browser import Browser, open_browser
from hostile import PAYLOADS, hostile_run
from letheon.api import write_report
from letheon.data.rows import Kind, Row
from letheon.evaluation.predicting import predict
from letheon.evaluation.rescoring import write_evaluation
from letheon.evaluation.suites.lume.official import complete_results
from letheon.evaluation.suites.lume.results import LumeResults, SplitName
from letheon.scores.results import Evaluation
from letheon.studies.page import write_study_page
from letheon.studies.records import RunRecord, StateScores, StudyRecord, write_study
from letheon.studies.spec import StudySettings

pytestmark = pytest.mark.browser

LEAST_CONTRAST = 4.5
"""WCAG 2.1, level AA, of text."""
LONG = "a-name-without-any-space/" * 12
LINKS = """[...document.querySelectorAll('a')].map(a => [a.getAttribute('href'), a.href])"""
WIDER = """[...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1
  && !e.closest('.wide') && !e.closest('details:not([open])')).map(e => e.outerHTML.slice(0, 120))"""
# The contrast ratio of each piece of text to what lies behind it, drawings included.
FAINT = (
    """(() => {
  const parts = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const light = rgb => { const [r, g, b] = rgb.map(v => v / 255).map(v => v <= .04045 ? v / 12.92 :
    ((v + .055) / 1.055) ** 2.4); return .2126 * r + .7152 * g + .0722 * b; };
  const behind = e => { for (; e; e = e.parentElement) { const c = parts(getComputedStyle(e).backgroundColor);
    if (c.length === 3 || c[3] > 0) return c.slice(0, 3); } return [255, 255, 255]; };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) { const e = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !e.getClientRects().length) continue;
    const style = getComputedStyle(e), ink = parts(e.closest('svg') ? style.fill : style.color).slice(0, 3);
    const [a, b] = [light(ink), light(behind(e))].sort((x, y) => y - x), ratio = (a + .05) / (b + .05);
    if (ratio < """
    + str(LEAST_CONTRAST)
    + """) found.push([ratio.toFixed(2), walker.currentNode.data.trim().slice(0, 60)]); }
  return found; })()"""
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The pages of a run, of one that was not evaluated, of an evaluation and an audit alone, and of a study."""
    at = tmp_path_factory.mktemp("pages")
    study = at / "study"
    whole = _run(study / "runs" / "first", evaluated=True)
    run = RunRecord(
        name="gamma=1, seed 0", identity="first", folder="runs/first", configuration="gamma=1", values={"gamma": 1},
        seed=0, role="study", state="finished", reason="finished",
        states=(StateScores(20, True, {"task_aggregate": 0.5, "forgotten": 0.9}),),
    )  # fmt: skip
    settings = StudySettings.of({"name": "weights", "base": {"model": LONG, "forget": "F"}, "grid": {"gamma": [1]}})
    write_study(StudyRecord(settings, (run,), {"m": StateScores(0, False, {"forgotten": 0.1})}), study)
    write_evaluation(_evaluation(0.5), at / "alone")
    return {
        "run": write_report(whole),
        "unscored": write_report(_run(at / "unscored", evaluated=False)),
        "evaluation": write_report(at / "alone"),
        "study": write_study_page(study),
        "audit": write_report(write_audit(at / "audited")),
    }


def _evaluation(share: float) -> Evaluation:
    said = "one two three four"[: round(18 * share)]
    kinds: tuple[Kind, ...] = ("completion", "question")
    predictions = [
        predict(Row(f"{split}-{task}-{kind}", f"{LONG} {split}?", "one two three four", task, kind), split, said)
        for split in get_args(SplitName)
        for task in ("Task1", "Task2")
        for kind in kinds
    ]
    results = complete_results(LumeResults(suite="lume", model=LONG), predictions, mia=None, mmlu=None, missing={})
    return Evaluation(results, tuple(predictions))


def _run(folder: Path, *, evaluated: bool) -> Path:
    folder.mkdir(parents=True)
    settings = {"method": "low-rank-npo", "model": LONG, "forget": "forget.jsonl", "retain": "retain.jsonl"}
    (folder / "run.yaml").write_text(yaml.safe_dump({**settings, "epochs": 3, "learning_rate": 0.1}))
    (folder / "provenance.json").write_text(json.dumps({"command": ["letheon", LONG], "python": "3.12"}))
    recalls = {"forget_recall": 0.9, "retain_recall": 0.8}
    events = [
        {"event": "start", "time": "2026-01-01", "template": "joined", "before": recalls, "unknown": []},
        *({"event": "step", "step": n, "epoch": n, "loss": 1 / n, "terms": {"npo": 1 / n}} for n in (1, 2, 3)),
        *({"event": "interim", "epoch": n, "score": n / 4, **recalls} for n in (1, 2, 3)),
        {"event": "note", "message": LONG},
        {"event": "end", "reason": "finished", "step": 3, "epoch": 3, "kept_epoch": 2},
    ]
    (folder / "log.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    for name, share in (("before", 1.0), ("after", 0.3)) if evaluated else ():
        write_evaluation(_evaluation(share), folder / "evaluation" / name)
    return folder


NAMES = ["run", "unscored", "evaluation", "study", "audit"]


@pytest.mark.parametrize("name", NAMES)
def test_a_page_opens_without_a_word_and_asks_for_nothing(name: str, browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages[name])
    assert browser.run("document.querySelector('h1').innerText").strip()
    assert browser.said == []
    assert browser.requests == [pages[name].as_uri()]


@pytest.mark.parametrize("payload", [*PAYLOADS, "\n".join(PAYLOADS)], ids=lambda payload: ascii(payload)[:24])
def test_hostile_text_stays_text(payload: str, browser: Browser, tmp_path: Path) -> None:
    page = write_report(hostile_run(tmp_path, payload))
    browser.open(page)
    assert (browser.dialogs, browser.said, browser.requests) == ([], [], [page.as_uri()])
    assert browser.run("document.querySelectorAll('script, img, iframe, form, [onload], [onerror]').length") == 0
    assert browser.run("[...document.querySelectorAll('a')].every(a => a.getAttribute('href').startsWith('#'))")
    assert browser.run("document.documentElement.scrollWidth <= innerWidth")


def test_a_script_on_a_page_would_not_run_and_the_console_would_say_so(
    browser: Browser, pages: dict[str, Path], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.html"
    broken.write_text(pages["run"].read_text().replace("<main>", "<main><script>document.title = 'ran'</script>"))
    browser.open(broken)
    assert browser.run("document.title") != "ran"
    assert any("Content Security Policy" in said for said in browser.said)


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", NAMES)
def test_no_page_scrolls_sideways(name: str, width: int, browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages[name], width=width)
    browser.run("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.run("innerWidth") == width
    assert browser.run(WIDER) == []
    assert browser.run("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("look", [{}, {"dark": True}, {"media": "print"}, {"media": "print", "dark": True}], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_text_can_be_read(name: str, look: dict[str, Any], browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages[name], **look)
    browser.run("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.run(FAINT) == []


def test_faint_text_is_found(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["run"])
    browser.run("document.querySelector('h1').style.color = '#bbb'")
    assert len(browser.run(FAINT)) == 1


@pytest.mark.parametrize("name", NAMES)
def test_every_link_leads_somewhere_and_every_fold_opens(name: str, browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages[name])
    links = browser.run(LINKS)
    assert links
    for written, _ in links:
        if written.startswith("#"):
            assert browser.run(f"document.getElementById({json.dumps(written[1:])}) !== null"), written
        else:
            assert (pages[name].parent / written).is_file(), written
    assert browser.run("[...document.querySelectorAll('nav a')].every(a => (a.click(), location.hash === a.hash))")
    assert browser.run("""[...document.querySelectorAll('details')].every(d => {
        const was = d.open; d.querySelector('summary').click(); return d.open !== was; })""")


def test_scores_come_first_and_settings_are_folded_and_last(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["run"])
    order = browser.run("[...document.querySelectorAll('section')].map(s => s.id)")
    assert (order[0], order[-1]) == ("scores", "settings")
    assert browser.run("document.querySelector('#settings details').open") is False
    assert browser.run("document.querySelector('#scores table') !== null")


def test_recalls_stand_in_where_nothing_was_evaluated(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["unscored"])
    scores = browser.run("document.querySelector('#scores').innerText")
    assert "The model was not evaluated" in scores
    assert [row.split()[0] for row in scores.splitlines() if "0.900" in row] == ["before", "epoch", "epoch", "epoch"]
    assert browser.run("document.querySelectorAll('#scores svg').length") == 1
