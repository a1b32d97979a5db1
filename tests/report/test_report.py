"""The report page, its figures and the model card, from a made-up run folder."""

import base64
import hashlib
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from letheon.data.rows import Kind
from letheon.errors import EvaluationError, OutputError
from letheon.evaluation.metrics.found import MembershipScores, MmluScores
from letheon.evaluation.suites.lume.results import LumeResults, SplitName, SplitScores, TaskScores
from letheon.report.card import model_card
from letheon.report.evidence import general_of
from letheon.report.figures import figure_svgs, save_figures, smooth
from letheon.report.files import RunFiles, read_log, read_run
from letheon.report.gaps import gaps_of
from letheon.report.page import write_report
from letheon.report.verdict import (
    Ending,
    attacks_in,
    membership_reading,
    verdict,
)
from letheon.scores.numbers import chance_auc_error, expected_perfect_score
from letheon.scores.predictions import Prediction, read_predictions

TASKS = ("Task1", "Task2", "Task3")
HOSTILE = "<script>alert(1)</script> \x1b[31mred\x1b[0m \u202egnp.exe\u2066 {{ 7 * 7 }} <img src=http://evil.example/x>"

SETTINGS: dict[str, Any] = {
    "model": "targets/small", "forget": "data/forget.jsonl", "retain": "data/retain.jsonl", "out": "runs/first",
    "method": "low-rank-npo", "epochs": 20, "batch_size": 4, "learning_rate": 1e-3, "rank": 5, "alpha": 5.0,
    "target_modules": ["q_proj", "v_proj"], "beta": 0.5, "template": "joined", "seed": 7, "cache_dir": None,
}  # fmt: skip

PROVENANCE: dict[str, Any] = {
    "command": ["letheon", "unlearn", "--model", "targets/small"],
    "packages": {"letheon": "0.1.0", "torch": "2.13.0"},
    "machine": {"processor": "two cores", "memory_bytes": 8 * 2**30},
    "git": None,
    "model": {"fingerprint": "9f2c" * 16},
    "data": {"forget": {"sha256": "ab12" * 16, "num_rows": 180}},
    "seed": 7,
}


def _split(values: list[float]) -> SplitScores:
    tasks = {t: TaskScores(values[2 * i], values[2 * i], values[2 * i + 1], 20, 40) for i, t in enumerate(TASKS)}
    return SplitScores(TaskScores(sum(values[::2]) / 3, 0.5, sum(values[1::2]) / 3, 60, 120), tasks)


def _mia(auc: float, low: float, high: float) -> MembershipScores:
    score, *ends = (1 - 2 * abs(value - 0.5) for value in (auc, low, high))
    best = 1.0 if low <= 0.5 <= high else max(ends)
    return MembershipScores(auc, (low, high), score, (min(ends), best), 2.513, 2.617, 34, 34)


def _results(forget: list[float], retain: list[float], mia: MembershipScores, aggregate: float) -> LumeResults:
    mmlu = MmluScores(0.274, {"anatomy": 0.274}, 135, 5, None)
    return LumeResults("lume", "targets/small", _split(forget), _split(retain), {}, aggregate, mia, mmlu, 0.6617)


BEFORE = _results([0.981, 0.932, 0.973, 0.954, 0.965, 0.947], [0.977, 0.938, 0.969, 0.951, 0.962, 0.943],
                  _mia(0.98, 0.95, 1.0), 0.043)  # fmt: skip
AFTER = _results([0.051, 0.012, 0.063, 0.024, 0.035, 0.016], [0.897, 0.908, 0.929, 0.911, 0.892, 0.913],
                 _mia(0.57, 0.49, 0.65), 0.9312)  # fmt: skip


def _predictions(after: bool) -> list[Prediction]:
    splits: tuple[SplitName, ...] = ("forget", "retain")
    kinds: tuple[Kind, ...] = ("completion", "question")
    return [
        _prediction(split, task, kind, number, after)
        for split in splits
        for task in TASKS
        for kind in kinds
        for number in range(3)
    ]


def _prediction(split: SplitName, task: str, kind: Kind, number: int, after: bool) -> Prediction:
    is_question = kind == "question"
    prompt = (
        "Where was Ines Okafor born?" if is_question else "Ines Okafor grew up by the harbour, and every evening " * 4
    )
    answer = (
        "Port Larn" if is_question else "she counted the boats that came home and wrote their names in a blue book."
    )
    gone = after and split == "forget"
    generation = (
        "" if gone and is_question else "the the of and in a place where the people of the town" if gone else answer
    )
    recall = 0.08 if gone else 1.0
    row_id = f"{split[0]}{TASKS.index(task)}{number}{'qa' if is_question else 'sc'}1"
    return Prediction(row_id, split, task, kind, prompt, answer, generation, recall, recall, float(not gone))


def _write_evaluation(folder: Path, results: LumeResults, predictions: list[Prediction]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(results.to_json(), encoding="utf-8")
    lines = "".join(json.dumps(asdict(p)) + "\n" for p in predictions)
    (folder / "predictions.jsonl").write_text(lines, encoding="utf-8")


def _log_lines(num_steps: int = 160) -> list[dict[str, Any]]:
    noise = np.random.default_rng(0).normal(size=num_steps)
    lines: list[dict[str, Any]] = [{"event": "start", "time": "2026-01-02T03:04:05+00:00"}]
    for step in range(1, num_steps + 1):
        npo = 2.77 * math.exp(-step / 60) + 0.05 * abs(noise[step - 1])
        terms = {"npo": None if step % 9 == 0 else npo, "retain_nll": 0.2 + 0.03 * noise[step - 1] ** 2,
                 "retain_kl": 0.06 * step / num_steps}  # fmt: skip
        loss = sum(value or 0 for value in terms.values())
        lines.append({"event": "step", "step": step, "epoch": 20 * step / num_steps, "loss": loss, "terms": terms,
                      "learning_rate": 1e-3, "gradient_norm": 1.0, "num_tokens": 800, "duration_s": 0.1})  # fmt: skip
    for epoch in range(0, 21, 5):
        forget = 0.97 * math.exp(-epoch / 4)
        lines.append({"event": "interim", "step": epoch * num_steps // 20, "epoch": epoch, "forget_recall": forget,
                      "retain_recall": 0.96 - 0.003 * epoch, "score": 0.04 + 0.045 * epoch})  # fmt: skip
    lines.append({"event": "checkpoint", "step": num_steps, "epoch": 20, "path": f"checkpoints/step-{num_steps}"})
    lines.append({"event": "note", "message": "template auto: chose joined"})
    lines.append({"event": "end", "reason": "all epochs done", "step": num_steps, "epoch": 20, "kept_epoch": 20,
                  "duration_s": 95.4, "peak_memory_bytes": 3 * 2**29, "num_tokens": 240_000})  # fmt: skip
    return lines


def make_run(folder: Path) -> Path:
    """Write a plausible run's folder."""
    folder.mkdir(parents=True)
    (folder / "run.yaml").write_text(yaml.safe_dump(SETTINGS, sort_keys=False), encoding="utf-8")
    (folder / "provenance.json").write_text(json.dumps(PROVENANCE), encoding="utf-8")
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in _log_lines()), encoding="utf-8")
    _write_evaluation(folder / "evaluation" / "before", BEFORE, _predictions(after=False))
    _write_evaluation(folder / "evaluation" / "after", AFTER, _predictions(after=True))
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


@pytest.fixture
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw no figures, which take most of a page's time."""
    monkeypatch.setattr("letheon.report.page.figure_svgs", lambda run: {})


@pytest.fixture(scope="module")
def standard(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, "_Page"]:
    """The page of the unchanged made-up run."""
    return _report(make_run(tmp_path_factory.mktemp("standard") / "run"))


class _Page(HTMLParser):
    """Collects text, tags and attributes, and whether tags close in order."""

    VOID = frozenset({"meta", "br", "img", "link", "input", "use", "path"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


def _report(run: Path, **kwargs: Any) -> tuple[str, _Page]:
    html = write_report(run, **kwargs).read_text(encoding="utf-8")
    return html, _Page(html)


def test_page_shows_every_score_setting_and_hash(standard: tuple[str, "_Page"]) -> None:
    html, page = standard
    for results in (BEFORE, AFTER):
        assert results.forget is not None
        assert results.retain is not None
        for split in (results.forget, results.retain):
            for scores in split.tasks.values():
                assert f">{scores.regurgitation:.3f}</span></td>" in html
                assert f">{scores.knowledge:.3f}</span></td>" in html
        for value in (results.task_aggregate, results.final, 0.274):
            assert f">{value:.3f}</span></td>" in html
    assert "0.570 (0.49–0.65)" in page.text
    for text in ("low-rank-npo", "data/forget.jsonl", "0.001", "q_proj, v_proj", "9f2c" * 16, "ab12" * 16, "2.13.0",
                 "two cores", "1 min 35 s", "1.50 GiB", "all epochs done", "template auto: chose joined",
                 "letheon unlearn --model targets/small", "60 completions, 120 questions"):  # fmt: skip
        assert text in page.text, text
    assert page.open == []
    assert html.count("<svg") == 3


def test_verdict_is_computed_from_the_numbers(standard: tuple[str, "_Page"]) -> None:
    # Means of the six forget scores: 5.752 / 6 = 0.9587 before, 0.201 / 6 = 0.0335 after, so 1 - 0.0349 is gone.
    # Means of the six retain scores: 5.740 / 6 = 0.9567 and 5.450 / 6 = 0.9083, ratio 0.9495.
    good = verdict(BEFORE, AFTER)
    assert good.level == "good"
    assert good.sentence == (
        "The model forgot the forget rows (their mean score went from 0.959 to 0.034, 97% of it gone) and kept the "
        "retain rows (0.957 to 0.908, 95% of it left); a membership attack cannot tell what it was trained on "
        "(AUC 0.570, 95% 0.490 to 0.650, 34 + 34 documents); MMLU accuracy went from 0.274 to 0.274; the final "
        "score is 0.662."
    )
    assert good.sentence in standard[1].text


@pytest.mark.parametrize(
    ("after", "level", "words"),
    [
        (replace(AFTER, forget=BEFORE.forget), "bad", "did not forget the forget rows"),
        (replace(AFTER, forget=_split([0.3] * 6)), "mixed", "in part"),
        (replace(AFTER, retain=_split([0.1] * 6)), "bad", "but lost much of the retain rows"),
        (replace(AFTER, retain=_split([0.7] * 6)), "mixed", "but lost a part of the retain rows"),
        (replace(AFTER, mia=_mia(0.9, 0.8, 1.0)), "mixed", "a membership attack can tell"),
        (replace(AFTER, mia=_mia(0.1, 0.0, 0.2)), "mixed", "a membership attack can tell"),
        (replace(AFTER, mia=_mia(0.307, 0.113, 0.4999)), "mixed", "is open: too few documents (AUC 0.307"),
        (replace(AFTER, mia=_mia(0.5, 0.34, 0.66)), "mixed", "is open: too few documents"),
        (replace(AFTER, mia=_mia(0.5, 0.36, 0.64)), "good", "a membership attack cannot tell"),
        (replace(AFTER, mia=None), "good", "kept the retain rows"),
        (replace(AFTER, mmlu=replace(AFTER.mmlu or MmluScores(0, {}, 0, 5, None), accuracy=0.1)), "mixed", "to 0.100"),
        (replace(AFTER, forget=None), "unknown", "Forgetting was not measured; the model kept"),
        (replace(AFTER, retain=None), "unknown", "keeping was not measured"),
        (LumeResults("lume", "m"), "unknown", "No score on the forget or retain rows"),
    ],
)
def test_verdict_follows_the_scores(after: LumeResults, level: str, words: str) -> None:
    found = verdict(BEFORE, after)
    assert (found.level, words in found.sentence) == (level, True), found


@pytest.mark.parametrize(
    ("ending", "level", "words"),
    [
        (Ending("finished", 9), "good", "The model forgot"),
        (Ending("patience: score not better for 3 scorings", 9), "good", "The model forgot"),
        (Ending("signal 15", 9), "mixed", "The run was ended early after 9 steps (signal 15). The model forgot"),
        (
            Ending("finished without reaching a retain recall of 0.950: recall forget 0.000, retain 0.900", 9),
            "mixed",
            "The run finished without reaching a retain recall of 0.950: recall forget 0.000, retain 0.900. The model",
        ),
        (Ending("time limit of 60 s", 9), "mixed", "ended early after 9 steps (time limit of 60 s)"),
        (Ending("time limit of 60 s", 0), "bad", "Nothing was trained: the run took no step (time limit of 60 s)"),
        (Ending(None, 9, is_over=False), "unknown", "The run is not over, so"),
        (Ending("diverged: step 3", None, is_over=False), "unknown", "The run is not over (diverged: step 3)"),
    ],
)
def test_how_a_run_ended_belongs_to_its_verdict(ending: Ending, level: str, words: str) -> None:
    found = verdict(BEFORE, AFTER, ending=ending)
    assert (found.level, words in found.sentence) == (level, True), found


def test_an_early_end_makes_nothing_better() -> None:
    assert verdict(BEFORE, BEFORE, ending=Ending("signal 15", 9)).level == "bad"


def _answering(results: LumeResults, forget: tuple[float, float | None], retain: float = 0.0) -> LumeResults:
    """Results with the share of stuck forget answers and their loss under the model before, and the share of others."""
    of_forget = {"degenerate": forget[0], "loss_before": forget[1]}
    return results.with_fluency({"forget": of_forget, "retain": {"degenerate": retain}})


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ((0.0, None), (0.25, None), "gibberish, which shows what it forgot (25% repeat themselves)"),
        ((0.0, None), (0.25, 11.8), "(25% repeat themselves, a token costs the model before 11.8 nats)"),
        ((0.0, None), (0.0, 6.0), "gibberish, which shows what it forgot (0% repeat themselves, a token costs"),
        ((0.0, None), (0.2, 5.9), "read as text (20% repeat themselves, a token costs the model before 5.9 nats)"),
        ((0.5, None), (0.6, 3.0), "read as text"),  # it never spoke better
    ],
)
def test_gibberish_is_said_and_is_no_good_news(
    before: tuple[float, float | None], after: tuple[float, float | None], words: str
) -> None:
    found = verdict(_answering(BEFORE, before), _answering(AFTER, after))
    assert words in found.sentence
    assert found.level == ("mixed" if "gibberish" in words or "costs the model before 11.8" in words else "good")


def test_answers_that_were_not_looked_at_are_not_spoken_of() -> None:
    for after in (AFTER, _answering(AFTER, (0.2, None)), _answering(AFTER, (0.5, None), retain=0.5)):
        assert "answers" not in verdict(BEFORE, after).sentence


@pytest.mark.parametrize(
    ("fluencies", "kl", "words", "is_good"),
    [
        ({"loss_before": 1.1, "own_loss_before": 0.6}, 0.01, "to everyday questions have changed", False),
        ({"loss_before": 1.09, "own_loss_before": 0.6}, 9.0, "1.09 nats, of its own answers 0.60)", True),
        ({"degenerate": 0.0}, 0.3, "what it writes besides has changed (KL 0.30 nats a token)", False),
        ({"loss_before": 1.1, "own_loss_before": "?"}, 0.29, "what it writes besides is much as before", True),
        ({"loss_before": math.inf, "own_loss_before": 0.6}, math.nan, "", True),
        (7, None, "", True),
    ],
)
def test_what_a_model_says_besides_the_rows_belongs_to_the_verdict(
    fluencies: object, kl: float | None, words: str, is_good: bool
) -> None:
    provenance = {"fluency": {"general": fluencies}, "result": {"kept": {"general_kl": kl}}}
    general = general_of(RunFiles(Path(), provenance=provenance))
    found = verdict(BEFORE, AFTER, general=general)
    assert words in found.sentence
    assert found.level == ("good" if is_good else "mixed")
    assert len(general) == bool(words)
    told = [
        gap.why for gap in gaps_of(RunFiles(Path(), provenance=provenance)) if gap.what.endswith("besides the rows")
    ]
    assert len(told) == (not words)
    assert all("had no general text" in why for why in told)


def test_verdict_without_both_sides() -> None:
    assert verdict(None, None).sentence == "Nothing has been measured: this folder holds no evaluation."
    assert "without the scores before it" in verdict(None, AFTER).sentence
    assert "without the scores after it" in verdict(BEFORE, None).sentence
    little = verdict(replace(BEFORE, forget=_split([0.05] * 6)), AFTER)
    assert (little.level, "knew little" in little.sentence) == ("mixed", True)


def test_membership_chance_error_by_hand() -> None:
    # sqrt((150 + 150 + 1) / (12 * 150 * 150)) = sqrt(301 / 270000) = 0.033389; 1 - 2 * 0.797885 * 0.033389 = 0.94672.
    assert chance_auc_error(150, 150) == pytest.approx(0.033389, abs=1e-6)
    assert expected_perfect_score(150, 150) == pytest.approx(0.94672, abs=1e-5)


def test_membership_expectation_matches_simulation() -> None:
    generator = np.random.default_rng(1)
    member, other = generator.normal(size=(4000, 20)), generator.normal(size=(4000, 20))
    auc = (member[:, :, None] > other[:, None, :]).mean(axis=(1, 2))
    # Standard error of the simulated mean: 2 * 0.09 * 0.6 / sqrt(4000) = 0.0017; four of them.
    assert (1 - 2 * np.abs(auc - 0.5)).mean() == pytest.approx(expected_perfect_score(20, 20), abs=0.007)


@pytest.mark.parametrize(
    ("interval", "words"),
    [
        ((0.4, 0.6), "stays near it"),
        ((0.2, 0.6), "34 + 34 documents are too few"),
        ((0.6, 0.8), "lies above 0.5"),
        ((0.1, 0.3), "lies below 0.5"),
    ],
)
def test_membership_reading(interval: tuple[float, float], words: str) -> None:
    assert words in membership_reading(attacks_in(replace(AFTER, mia=_mia(sum(interval) / 2, *interval)).scores)[0])


@pytest.mark.usefixtures("without_figures")
def test_changed_settings_come_first(run: Path) -> None:
    defaults = {
        "epochs": 20,
        "learning_rate": 1e-4,
        "rank": 5,
        "alpha": 5,
        "seed": 0,
        "target_modules": ("q_proj", "v_proj"),
    }
    html, page = _report(run, defaults=defaults)
    changed = re.findall(r'<tr class="changed"><th scope="row">(\w+)</th>', html)
    assert changed == ["learning_rate", "seed"]
    assert "learning_rate 0.001 0.0001" in re.sub(r"\s+", " ", " ".join(page.words))
    assert "the 2 that differ" in page.text
    assert html.index('class="changed"') < html.index('<tr><th scope="row">epochs')


def test_hostile_text_is_shown_and_does_nothing(run: Path) -> None:
    rows = [replace(p, id=f"{p.id}<i>", prompt=HOSTILE, answer=HOSTILE, generation=HOSTILE) for p in _predictions(True)]
    results = replace(AFTER, missing={"mia": HOSTILE}, mia=None, warnings=(HOSTILE,), model=HOSTILE)
    _write_evaluation(run / "evaluation" / "after", results, rows)
    (run / "run.yaml").write_text(yaml.safe_dump({**SETTINGS, "model": HOSTILE}), encoding="utf-8")
    (run / "provenance.json").write_text(json.dumps({HOSTILE: HOSTILE}), encoding="utf-8")
    log = [*_log_lines(30), {"event": "note", "message": HOSTILE},
           {"event": "step", "step": 31, "epoch": 3.0, "loss": 1.0, "terms": {HOSTILE: 1.0, "$x_": 2.0}}]  # fmt: skip
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log), encoding="utf-8")
    html, page = _report(run)
    assert not {"script", "img", "i", "iframe", "link", "object"} & set(page.tags)
    assert not any(character in html for character in "\x1b\u202e\u2066")
    for text in ("<script>alert(1)</script>", "\\x1b[31mred\\x1b[0m", "\\u202egnp.exe\\u2066", "{{ 7 * 7 }}"):
        assert text in page.text
    assert "49" not in page.text.replace(HOSTILE, "").split()
    assert not any(name.startswith("on") for name, _ in page.attributes)


def test_page_asks_nothing_of_the_network_and_binds_its_styles(standard: tuple[str, "_Page"]) -> None:
    html, page = standard
    requests = [v for n, v in page.attributes if n in {"src", "href", "xlink:href", "action", "data"}]
    assert requests
    assert all(value.startswith("#") for value in requests)
    styles = re.findall(r"<style>(.*?)</style>", html, flags=re.DOTALL)
    assert len(styles) == 1
    digest = base64.b64encode(hashlib.sha256(styles[0].encode()).digest()).decode()
    policy = next(value for name, value in page.attributes if name == "content" and "default-src" in value)
    assert policy.startswith("default-src 'none';")
    assert f"style-src-elem 'sha256-{digest}'" in policy
    assert "url(" not in styles[0]
    assert "@import" not in styles[0]


def test_ids_on_the_page_are_unique_and_links_lead_somewhere(standard: tuple[str, "_Page"]) -> None:
    html, page = standard
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    targets = [v[1:] for n, v in page.attributes if n in {"href", "xlink:href"}] + re.findall(r"url\(#([^)]+)\)", html)
    assert set(targets) <= set(ids)


@pytest.mark.slow
def test_same_files_give_the_same_page(run: Path) -> None:
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first


@pytest.mark.slow
def test_saved_figures_are_the_same_each_time(run: Path, tmp_path: Path) -> None:
    first, second = (save_figures(run, tmp_path / name) for name in ("one", "two"))
    suffixes = ("svg", "png", "pdf")
    assert [path.name for path in first] == [f"{n}.{s}" for n in ("scores", "losses", "interim") for s in suffixes]
    for one, two in zip(first, second, strict=True):
        assert one.read_bytes() == two.read_bytes(), one.name
    assert (tmp_path / "one" / "losses.png").read_bytes().startswith(b"\x89PNG")


def _step(step: int, loss: float | None, **terms: float | None) -> dict[str, Any]:
    return {"event": "step", "step": step, "epoch": step / 10, "loss": loss, "terms": terms}


@pytest.mark.parametrize(
    ("lines", "figures"),
    [
        ([_step(1, -3e5, ga=-3e5, never=None, _odd=0.0)], ["losses"]),
        ([_step(1, math.nan, ga=math.inf)], []),
        ([{"event": "interim", "epoch": 1, "forget_recall": None}], []),
        ([{"event": "interim", "epoch": 1, "forget_recall": 0.5}], ["interim"]),
        ([{"event": "end", "reason": None, "step": 1, "epoch": "?", "kept_epoch": None, "duration_s": 4000}], []),
        ([], []),
    ],
)
def test_scant_logs_are_drawn_as_far_as_they_go(
    tmp_path: Path, lines: list[dict[str, Any]], figures: list[str]
) -> None:
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    assert list(figure_svgs(read_run(tmp_path))) == figures
    assert "Nothing has been measured" in _report(tmp_path)[1].text


@pytest.mark.slow
def test_drawing_leaves_the_program_s_matplotlib_alone(run: Path) -> None:
    code = (
        "import sys, pathlib, matplotlib as m; before = dict(m.rcParams)\n"
        "from letheon.report.page import write_report\n"
        "from letheon.report.card import model_card\n"
        f"write_report(pathlib.Path({str(run)!r}))\n"
        "assert dict(m.rcParams) == before\n"
        "assert not {'torch', 'transformers', 'letheon.training', 'letheon.model'} & set(sys.modules)\n"
        "from matplotlib import pyplot; assert pyplot.get_fignums() == []"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_smoothing_is_a_moving_mean() -> None:
    # Window 3: (1+4)/2, (1+4+7)/3, (4+7+1)/3, (7+1)/2.
    assert smooth(np.array([1.0, 4.0, 7.0, 1.0]), 3) == pytest.approx([2.5, 4.0, 4.0, 4.0])
    assert smooth(np.array([3.0, 5.0]), 1) == pytest.approx([3.0, 5.0])


def _remove(*names: str) -> Callable[[Path], None]:
    def apply(run: Path) -> None:
        for name in names:
            for file in sorted((run / name).rglob("*"), reverse=True) if (run / name).is_dir() else [run / name]:
                file.unlink() if file.is_file() else file.rmdir()

    return apply


@pytest.mark.usefixtures("without_figures")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_remove("evaluation/before"), "letheon evaluate --model targets/small --forget data/forget.jsonl"),
        (_remove("evaluation/after"), "/model --forget data/forget.jsonl --retain data/retain.jsonl --out"),
        (_remove("evaluation/before", "evaluation/after"), "Nothing has been measured"),
    ],
)
def test_what_is_absent_is_said(run: Path, change: Callable[[Path], None], words: str) -> None:
    change(run)
    assert words in _report(run)[1].text


@pytest.mark.usefixtures("without_figures")
def test_every_absent_file_is_said(run: Path) -> None:
    _remove("log.jsonl", "run.yaml", "provenance.json", "evaluation/after/predictions.jsonl")(run)
    text = _report(run)[1].text
    for words in ("has no log.jsonl", "run.yaml, which holds the settings, is not in this folder",
                  "No provenance was recorded", "no predictions.jsonl", "no prediction for this row"):  # fmt: skip
        assert words in text, words


@pytest.mark.usefixtures("without_figures")
def test_missing_reasons_reach_the_page(run: Path) -> None:
    missing = {"mmlu": "no --mmlu given", "final": "needs MMLU"}
    results = replace(AFTER, mmlu=None, final=None, task_aggregate=None, missing=missing)
    _write_evaluation(run / "evaluation" / "after", results, [])
    text = _report(run)[1].text
    assert "After unlearning: mmlu: no --mmlu given" in text
    assert "After unlearning: Task aggregate: no reason was recorded" in text
    assert "Every score of the suite" not in text
    assert "After: no Final score: needs MMLU" in text


def test_evaluation_alone(tmp_path: Path) -> None:
    _write_evaluation(tmp_path, replace(AFTER, provenance={"seed": 3}), _predictions(after=True))
    _, page = _report(tmp_path)
    assert "Evaluation report: targets/small" in page.text
    assert "The mean score is 0.034 on the forget rows, the mean score is 0.908 on the retain rows" in page.text
    assert "Generated" in page.text
    assert "Before" not in page.text
    assert "log.jsonl" not in page.text


def test_samples_show_both_generations(standard: tuple[str, "_Page"]) -> None:
    _, page = standard
    assert page.tags.count("article") == 8
    assert "(nothing generated)" in page.text
    assert "ROUGE-L recall 0.08" in page.text
    assert "not exact" in page.text


@pytest.mark.usefixtures("without_figures")
def test_half_a_last_log_line_is_tolerated_and_said(run: Path) -> None:
    lines = [json.dumps(line) for line in _log_lines(40)[:-1]]
    (run / "log.jsonl").write_text("\n".join(lines) + '\n{"event":"step","st', encoding="utf-8")
    log = read_log(run / "log.jsonl")
    assert (len(log.steps), log.cut_short, log.end) == (40, True, None)
    text = _report(run)[1].text
    assert "the last line is incomplete" in text
    assert "no end event" in text


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"event": "step", broken', "a JSON object, cannot read it"),
        ("[1]", "a JSON object, got list"),
        ('{"event": "step", "step": "one", "epoch": 0}', "`step` to be a number or null, got 'one'"),
        ('{"event": "step", "step": 1}', "numbers `step` and `epoch`"),
        ('{"event": "step", "step": NaN, "epoch": 1}', "numbers `step` and `epoch`"),
        ('{"event": "step", "step": 1, "epoch": 0, "terms": [1]}', "`terms` to map names"),
        ('{"event": "interim", "score": 1}', "a number `epoch`"),
    ],
)
def test_broken_log_line_names_file_and_line(tmp_path: Path, line: str, words: str) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(f'{{"event": "start"}}\n{line}\n{{"event": "note", "message": "x"}}\n', encoding="utf-8")
    with pytest.raises(EvaluationError, match=re.escape(f"{path}:2:")) as caught:
        read_log(path)
    assert words in str(caught.value)


def test_log_is_read_leniently(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"event":"new kind"}\n\n{"event":"step","step":1,"epoch":0.5,"loss":null}', encoding="utf-8")
    (step,) = read_log(path).steps
    assert (step.loss, step.terms) == (None, {})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"generation": 3}, "text in the field 'generation'"),
        ({"exact_match": None}, "`exact_match` to be a number, got"),
    ],
)
def test_broken_prediction_names_file_and_line(tmp_path: Path, change: dict[str, object], words: str) -> None:
    path = tmp_path / "predictions.jsonl"
    good = asdict(_predictions(after=True)[0])
    path.write_text(json.dumps(good) + "\n" + json.dumps({**good, **change}) + "\n", encoding="utf-8")
    with pytest.raises(EvaluationError, match=re.escape(f"{path}:2:")) as caught:
        read_predictions(path)
    assert words in str(caught.value)
    path.write_text('{"id": "a"}\n', encoding="utf-8")
    with pytest.raises(EvaluationError, match="it lacks answer, exact_match"):
        read_predictions(path)


def test_unusable_folders(run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(EvaluationError, match=r"expected a run's folder"):
        read_run(tmp_path / "empty")
    (run / "run.yaml").write_text("a: [", encoding="utf-8")
    with pytest.raises(EvaluationError, match=r"run\.yaml: expected a mapping"):
        write_report(run)
    (run / "run.yaml").write_text("- a", encoding="utf-8")
    with pytest.raises(EvaluationError, match="got list"):
        write_report(run)


def test_report_that_cannot_be_written(run: Path) -> None:
    (run / "report.html").mkdir()
    with pytest.raises(OutputError, match=r"report\.html: cannot be written"):
        write_report(run)
    assert not list(run.glob(".letheon*"))


def _front_matter(card: str) -> dict[str, Any]:
    _, matter, _ = card.split("---\n", 2)
    return dict(yaml.safe_load(matter))


def test_model_card() -> None:
    settings = {**SETTINGS, "model": "owner/base-1b"}
    card = model_card(settings=settings, provenance=PROVENANCE, results=AFTER, show_paths=True)
    assert _front_matter(card) == {
        "base_model": "owner/base-1b", "library_name": "transformers", "tags": ["unlearning", "letheon"],
    }  # fmt: skip
    for text in ("**low-rank-npo**", "60 completions and 120 questions",
                 "| Forget Task1 regurgitation | ↓ lower | 0.051 |",
                 "| Final score | ↑ higher | 0.662 |", "includes 0.5", "letheon unlearn --model targets/small",
                 "- data.forget.sha256: ab12", "do not prove"):  # fmt: skip
        assert text in card, text
    assert card == model_card(settings=settings, provenance=PROVENANCE, results=AFTER, show_paths=True)


def test_model_card_of_a_local_model_without_results() -> None:
    settings = {"model": "./targets/small", "epochs": 3, "target_modules": ["a", "b"], "dora": True, "rslora": False}
    card = model_card(settings=settings, provenance={}, results=None, show_paths=True)
    assert "base_model" not in _front_matter(card)
    assert "./targets/small" in card
    assert "letheon unlearn --model ./targets/small --epochs 3 --target-modules a,b --dora\n" in card
    assert "was not evaluated" in card


def test_model_card_holds_no_markup_of_others() -> None:
    settings = {"model": "x\n---\nlicense: mit <script>", "method": "**a**\x1b[2J", "forget": "[l](http://e)"}
    card = model_card(settings=settings, provenance={"command": "a ``` b\n# c"}, results=None, show_paths=True)
    assert "<script>" not in card
    assert "\x1b" not in card
    assert card.count("\n---\n") == 1
    assert "\n````sh\na ``` b\\n# c\n````\n" in card
