"""When a run ends early, which state it leaves, and what scoring it on the way does to it: nothing."""

import json
import math
import random
import signal
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from letheon import Row, UnlearnSettings
from letheon.errors import SettingsError
from letheon.model.loading import load_model
from letheon.objective.catalogue import get_method
from letheon.training import step
from letheon.training.checkpoint import load_checkpoint
from letheon.training.judge import Better, StateScore, best
from letheon.training.stopping import Clock, Pace, choose_kept, why_stop, writing_s
from letheon.training.tracking import Silent
from letheon.unlearning import judging
from letheon.unlearning.inputs import read_inputs
from letheon.unlearning.interim import Probes, interim_score, membership_auc, membership_score_of, more_repetition
from letheon.unlearning.judging import Budgets, Start, UnlearningJudge
from letheon.unlearning.prepare import prepare
from letheon.unlearning.resolve import resolve_settings
from letheon.unlearning.run import unlearn
from running import After, events, knowing_model, model_of, run, same, short_run, state_score

START = Start(state_score(0, retain_loss=0.8, text_loss=2.5))
NONE = Budgets()


def judge_of(budgets: Budgets = NONE, start: Start | None = START) -> UnlearningJudge:
    """A judge that has nothing to look at."""
    return UnlearningJudge(cast("Any", None), cast("Any", None), start, budgets)


def settings_of(**given: Any) -> UnlearnSettings:
    return UnlearnSettings.of({"model": "m", "forget": "f", "retain": "r", "out": "o", **given})


def history_of(metric: str, *values: float) -> list[StateScore]:
    return [state_score(step, **{metric: value}) for step, value in enumerate(values, start=1)]


# Reasons


@pytest.mark.parametrize(
    ("metric", "better", "worse"),
    [
        ("score", 0.6, 0.4),
        ("membership", 0.6, 0.4),
        ("retain_recall", 0.6, 0.4),
        ("forget_recall", 0.4, 0.6),
        ("retain_loss", 0.9, 1.1),
        ("retain_kl", 0.1, 0.3),
    ],
)
def test_patience_waits_for_each_metric_to_become_better(metric: str, better: float, worse: float) -> None:
    first = state_score(0).values[metric]
    assert first is not None
    for values in (
        [first],
        [first, worse],
        [worse, worse, first],
        [first, worse, better],
        [first, worse, better, worse],
    ):
        assert why_stop(history_of(metric, *values), judge_of(), patience=2, waits_on=metric) is None, values
    for values in ([first, worse, worse], [first, first, first], [worse, better, worse, first], [first] * 9):
        reason = why_stop(history_of(metric, *values), judge_of(), patience=2, waits_on=metric)
        assert reason is not None, values
        assert reason.startswith(f"patience: {metric} not better for")


def test_no_patience_means_forever() -> None:
    assert why_stop(history_of("score", *[0.5] * 50), judge_of(), patience=None, waits_on="score") is None


def test_a_metric_that_is_no_number_is_never_better() -> None:
    waiting: dict[str, Any] = {"patience": 2, "waits_on": "retain_loss"}
    assert why_stop(history_of("retain_loss", 1.0, math.nan), judge_of(), **waiting) is None
    assert why_stop(history_of("retain_loss", 1.0, math.nan, math.nan), judge_of(), **waiting) is not None


@pytest.mark.parametrize(
    ("metric", "value", "collapses"),
    [
        ("retain_loss", 1.29, False),
        ("retain_loss", 1.31, True),
        ("retain_loss", math.nan, True),
        ("retain_loss", math.inf, True),
        ("text_loss", 3.49, False),
        ("text_loss", 3.51, True),
        ("text_loss", math.nan, True),
        ("text_loss", None, False),
    ],
)
def test_a_loss_past_its_budget_is_a_collapse(metric: str, value: float | None, collapses: bool) -> None:
    budgets = Budgets.of(settings_of(retain_budget=0.5, text_budget=1.0, holdout="d.jsonl"))
    score = state_score(1, **{metric: value})
    reason = judge_of(budgets).collapse(score)
    assert (reason is not None) == collapses
    better = state_score(1, **{metric: value, "score": 0.9})
    assert why_stop([state_score(1), better], judge_of(budgets), patience=1, waits_on="score") == reason
    assert judge_of().collapse(score) is None
    assert judge_of(budgets, start=None).collapse(score) is None
    if reason is not None:
        assert reason.startswith("collapse: ")
        assert "budget" in reason


def test_a_collapsed_state_is_kept_only_where_there_is_no_other() -> None:
    judge = judge_of(Budgets(retain=0.5))
    history = [
        state_score(1, score=0.6),
        state_score(2, score=0.7),
        state_score(3, score=0.7),
        state_score(4, score=0.2),
        state_score(5, score=0.9, retain_loss=9.0),
    ]
    assert choose_kept(history, judge, keep="best").step == 3
    assert choose_kept(history, judge_of(judge.budgets, start=None), keep="best").step == 5
    assert choose_kept(history, judge, keep="last").step == 4
    assert best(history, judge).step == 3
    assert choose_kept(history[4:], judge, keep="best").step == 5


def test_the_best_state_is_the_one_that_is_best_in_the_direction_of_the_judge() -> None:
    @dataclass(frozen=True)
    class Lower(UnlearningJudge):
        @property
        def better(self) -> Mapping[str, Better]:
            return {"score": "lower"}

    history = [state_score(1, score=0.3), state_score(2, score=0.1), state_score(3, score=0.2)]
    lower = Lower(cast("Any", None), cast("Any", None), START, NONE)
    assert best(history, lower).step == 2
    assert why_stop(history, lower, patience=1, waits_on="score") is not None
    assert best(history, judge_of()).step == 1


def judge_of_rows(num_forget_rows: int) -> UnlearningJudge:
    """A judge of so many forget rows, which it does not look at."""
    return replace(judge_of(), probes=Probes(rows=(), answers=(), num_forget_rows=num_forget_rows))


def spoken(step: int, score: float, repetition: float | None) -> StateScore:
    found = state_score(step, score=score)
    return replace(found, values={**found.values, "forget_repetition": repetition})


def test_repetition_counts_what_the_true_answer_does_not_repeat() -> None:
    true = [1, 2, 3, 4, 5, 6, 1, 2, 7]  # 8 pairs, 7 distinct
    assert more_repetition(true, true) == 0
    assert more_repetition([9] * 9, true) == pytest.approx(7 / 8 - 1 / 8)
    assert more_repetition([9] * 7, true[:7]) is None


def test_the_noise_of_a_score_is_that_of_a_share_of_the_rows() -> None:
    judge = judge_of_rows(12)
    # (12 * 0.5 + 2) / 16 = 1/2: sqrt(1/4 / 16); (12 + 2) / 16 = 7/8: sqrt(7/64 / 16).
    assert judge.noise(state_score(1, score=0.5)) == pytest.approx(0.125)
    assert judge.noise(state_score(1, score=1.0)) == pytest.approx(math.sqrt(7) / 32)


def test_of_states_that_are_equal_within_the_noise_one_that_does_not_stutter_is_kept() -> None:
    judge = judge_of_rows(12)  # a noise of 0.083 at 1
    history = [spoken(1, 0.90, 0.0), spoken(2, 0.93, 0.02), spoken(3, 0.94, 0.5), spoken(4, 1.0, 0.4)]
    assert best(history, judge).step == 2
    assert choose_kept(history, judge, keep="best").step == 2
    assert choose_kept(history, judge, keep="last").step == 4
    why = judge.why_kept(history, history[1])
    assert why is not None
    assert "epoch 2 is kept (score 0.930), not epoch 4 (1.000)" in why
    assert "(0.083)" in why
    assert judge.why_kept(history, history[3]) is None
    # Too far behind; nothing known of what it says; nothing to gain.
    for other in (spoken(2, 0.91, 0.02), spoken(2, 0.93, None), spoken(2, 0.93, 0.11)):
        assert best([other, history[3]], judge).step == 4
    assert judge.why_kept([spoken(1, 0.93, 0.0), spoken(2, 1.0, 0.0)], spoken(2, 1.0, 0.0)) is None


@pytest.mark.parametrize("seed", range(20))
def test_the_state_that_is_kept_is_the_one_before_or_the_new_one(seed: int) -> None:
    draw = random.Random(seed)
    judge = judge_of_rows(draw.choice((1, 4, 24, 254)))
    history: list[StateScore] = []
    for number in range(1, 60):
        before = best(history, judge).step if history else 0
        history.append(spoken(number, draw.random() ** draw.choice((0.1, 1, 3)), draw.choice((0.0, 0.5))))
        assert best(history, judge).step in (before, number)


def test_membership_of_a_broken_model_is_no_success() -> None:
    assert membership_score_of(membership_auc([1.0, 3.0], [2.0])) == pytest.approx(1.0)
    assert membership_score_of(membership_auc([math.nan, 1.0], [2.0])) == 0.0
    assert membership_score_of(membership_auc([1.0], [math.inf])) == 0.0


def test_shares_of_the_time_left() -> None:
    clock = Clock(limit_s=100.0, closing_s=10.0)
    clock.started -= 30.0  # 30 s have gone, 60 are left before closing
    half = clock.share(2)
    assert half.limit_s == pytest.approx(70.0, abs=0.1)
    assert not half.is_over(next_s=29.0)
    assert half.is_over(next_s=31.0)
    assert clock.share(1).limit_s == pytest.approx(100.0, abs=0.1)
    assert Clock(None).share(2).limit_s is None
    clock.started -= 100.0
    assert clock.share(2).is_over()


def test_a_scoring_is_expected_to_take_what_steps_or_earlier_ones_took() -> None:
    pace = Pace(forward_token_s=0.02)
    assert pace.scoring_s(1000) == pytest.approx(20)
    assert pace.step_s(50) == pytest.approx(3)
    pace.add_step(3.0, num_tokens=50)
    pace.add_step(1.0, num_tokens=150)
    assert pace.step_s(1000) == 3
    assert pace.scoring_s(1000) == pytest.approx(1000 * 4 / 200 / 2)
    pace.add_scoring(2.0)
    pace.add_scoring(1.0)
    assert pace.scoring_s(1000) == 2


def test_writing_is_expected_to_take_what_the_disk_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([10.0, 10.5, 20.0, 20.5])
    monkeypatch.setattr("letheon.training.stopping.time.monotonic", lambda: next(now))
    mib = 2**20
    # A sample of 8 MiB in 0.5 s, and one of all there is.
    assert writing_s(tmp_path, 80 * mib) == pytest.approx(0.5 + 3 * 0.5 * 10)
    assert writing_s(tmp_path, mib) == pytest.approx(0.5 + 3 * 0.5)
    assert list(tmp_path.iterdir()) == []


# Runs


@pytest.fixture
def given(tmp_path: Path, rows: list[Row], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    (tmp_path / "unseen.jsonl").write_text(
        '{"document": "The ferry was late again."}\n{"document": "Rain all week."}\n'
    )
    return short_run(tmp_path, rows, knowing_model(tokenizer, rows), tokenizer)


def scored(monkeypatch: pytest.MonkeyPatch, **values: list[float]) -> None:
    """Give each scoring of a run the next of `values`."""
    seen: list[int] = []

    def score(*args: Any, **kwargs: Any) -> StateScore:
        found = interim_score(*args, **kwargs)
        place = len(seen)
        seen.append(place)
        given = {name: wanted[min(place, len(wanted) - 1)] for name, wanted in values.items()}
        return replace(found, values={**found.values, **given})

    monkeypatch.setattr(judging, "interim_score", score)


@pytest.mark.parametrize("metric", ["score", "retain_loss"])
def test_patience_ends_a_run_and_the_best_state_is_left(
    metric: str, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"score": [0.3, 0.5, 0.4, 0.4, 0.4, 0.6], "retain_loss": [3.0, 1.0, 2.0, 2.0, 2.0, 0.1]}
    scored(monkeypatch, **values)
    report = run(given, epochs=8, patience=3, patience_on=metric)
    assert report.reason == f"patience: {metric} not better for 3 scorings"
    assert report.num_steps == 5 * 3
    assert report.kept.step == 2 * 3
    saved = load_checkpoint(report.folder / "checkpoints" / "step-6")
    assert saved is not None
    left = load_checkpoint(report.folder / "checkpoints" / "step-15")
    assert left is not None
    assert not same(saved.parameters, left.parameters)
    adapter = unlearned(report.folder)
    assert same({n.replace(".default", ""): v for n, v in saved.parameters.items()}, adapter)


def unlearned(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "adapter" / "adapter_model.safetensors")


@pytest.mark.parametrize(("budget", "name"), [("retain_budget", "retain loss"), ("text_budget", "loss of unseen")])
def test_a_collapse_ends_a_run_and_an_earlier_state_is_left(
    budget: str, name: str, given: dict[str, Any], rows: list[Row], tmp_path: Path
) -> None:
    # Documents of what the model knows, so that there is something to lose.
    known = tmp_path / "known.jsonl"
    known.write_text(
        "".join(json.dumps({"document": f"{row.prompt} {row.answer} {row.prompt}"}) + "\n" for row in rows[3:])
    )
    report = run(
        given,
        method="ga",
        epochs=60,
        learning_rate=5e-3,
        holdout=known,
        **{budget: 0.5},
    )
    assert report.reason.startswith(f"collapse: {name}")
    assert report.num_steps < 60 * 2
    scores = events(report.folder, "interim")
    assert len(scores) > 1
    assert report.kept.step < report.num_steps
    within = [line for line in scores if line["step"] < report.num_steps]
    assert report.kept.score == max(line["score"] for line in within)


def test_a_collapse_counts_from_the_untouched_model(given: dict[str, Any]) -> None:
    # A budget of next to nothing is passed by the first scoring, whatever has happened by then.
    report = run(given, method="ga", epochs=5, retain_budget=1e-6)
    assert report.reason.startswith("collapse: retain loss")
    assert report.num_steps == 2


def test_a_model_that_broke_down_ends_as_a_collapse_not_as_an_error(
    given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = "letheon.model.adapters.LoraAdapter.update_model"

    def break_down(adapter: Any) -> None:
        with torch.no_grad():
            for parameter in adapter.parameters():
                parameter.fill_(math.nan)

    monkeypatch.setattr(update, break_down)
    report = run(
        given,
        method="ga",
        epochs=1,
        batch_size=3,
        holdout=tmp_path / "unseen.jsonl",
        retain_budget=1.0,
        text_budget=1.0,
    )
    assert report.reason.startswith("collapse: retain loss nan")
    assert report.kept.values["membership"] == 0.0


@pytest.mark.parametrize("method", ["neko", "sugd", "pdu", "npo-ties"])
@pytest.mark.slow
def test_scoring_often_or_once_gives_the_same_weights(method: str, given: dict[str, Any], tmp_path: Path) -> None:
    shared = {"method": method, "epochs": 4, "keep": "last", "holdout": tmp_path / "unseen.jsonl"}
    once = run(given, **shared, checkpoint_epochs=4)
    often = run(given, **shared, checkpoint_epochs=1, out=tmp_path / "often", retain_budget=1e6, patience=100)
    sometimes = run(given, **shared, score_at="0.5,3", out=tmp_path / "sometimes")
    assert len(events(once.folder, "interim")) < len(events(often.folder, "interim"))
    assert same(model_of(once), model_of(often))
    assert same(model_of(once), model_of(sometimes))


def test_scores_at_given_epochs_keep_their_checkpoints(given: dict[str, Any]) -> None:
    report = run(given, epochs=4, score_at="0.34,2", keep="last")
    # 3 steps an epoch: after step 1 and 6, and at the end.
    assert [line["step"] for line in events(report.folder, "interim")] == [1, 6, 12]
    assert sorted(p.name for p in (report.folder / "checkpoints").iterdir()) == ["step-1", "step-12", "step-6"]
    assert all(load_checkpoint(p) is not None for p in (report.folder / "checkpoints").iterdir())


def test_a_number_of_steps_ends_a_run_and_its_decay(given: dict[str, Any]) -> None:
    report = run(given, epochs=10, max_steps=4, learning_rate_schedule="linear")
    assert (report.num_steps, report.reason) == (4, "finished")
    rates = [line["learning_rate"] for line in events(report.folder, "step")]
    assert rates == pytest.approx([1e-2, 0.75e-2, 0.5e-2, 0.25e-2])


def test_each_chunk_has_an_optimiser_and_a_decay_of_its_own(given: dict[str, Any], tmp_path: Path) -> None:
    chunks = {"method": "sugd", "epochs": 2, "chunk_size": 2, "retain_ratio": 1, "batch_size": 2}
    report = run(given, **chunks)
    # Chunks of 2 and 1 forget rows with a retain row each: 2 and 1 steps, twice.
    rates = [line["learning_rate"] for line in events(report.folder, "step")]
    assert rates == pytest.approx([1e-2, 0.75e-2, 0.5e-2, 0.25e-2, 1e-2, 0.5e-2])
    # A run cut at the end of a chunk ends its decay there, and the optimiser holds that chunk's steps alone.
    cut = run(given, **chunks, max_steps=5, out=tmp_path / "cut")
    assert [line["learning_rate"] for line in events(cut.folder, "step")][-1] == pytest.approx(1e-2)
    saved = load_checkpoint(report.folder / "checkpoints" / "step-6")
    assert saved is not None
    assert {float(v) for n, v in saved.optimiser.items() if n.endswith(".step")} == {2.0}


# Validation


def test_rows_left_out_are_scored_on_and_never_trained_on(
    given: dict[str, Any], rows: list[Row], tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = resolve_settings(UnlearnSettings.of({**given, "validation": 0.34}))
    inputs = read_inputs(settings)
    left_out = {row.id for half in inputs.left_out for row in half}
    assert len(left_out) == 2
    assert {row.id for row in inputs.rows} == {row.id for row in rows} - left_out
    loaded = load_model(settings.model)
    problem = prepare(
        loaded, inputs, settings, method=get_method(settings.method), cache_dir=None, observer=Silent()
    ).problem
    assert {row.id for row in problem.probes.rows} == left_out
    assert problem.probes.num_forget_rows == 1
    texts = {tokenizer.decode(list(s.input_ids), skip_special_tokens=True) for s in problem.sequences}
    for row in rows:
        assert (f"{row.prompt} {row.answer}" in texts) == (row.id not in left_out)
    scored_texts = [tokenizer.decode(list(s.input_ids), skip_special_tokens=True) for s in problem.probes.answers]
    assert scored_texts == [f"{row.prompt} {row.answer}" for row in problem.probes.rows]
    seen: list[int] = []
    add_gradients = step.add_gradients

    def watch(problem: Any, rows: Any, **kwargs: Any) -> Any:
        seen.extend(rows)
        return add_gradients(problem, rows, **kwargs)

    monkeypatch.setattr(step, "add_gradients", watch)
    report = run(given, validation=0.34, epochs=2)
    assert sorted(set(seen)) == [0, 1, 2, 3]
    assert [line["epoch"] for line in events(report.folder, "interim")] == [1, 2]


def test_the_split_follows_the_seed(given: dict[str, Any]) -> None:
    def left_out(seed: int) -> list[str]:
        settings = resolve_settings(UnlearnSettings.of({**given, "validation": 0.34, "seed": seed}))
        return [row.id for half in read_inputs(settings).left_out for row in half]

    assert left_out(0) == left_out(0)
    assert len({tuple(left_out(seed)) for seed in range(6)}) > 1


@pytest.mark.parametrize("share", [0.01, 0.99])
def test_a_split_that_leaves_nothing_is_refused(share: float, given: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=r"validation: a share of .* at least one row must be left for scoring"):
        run(given, validation=share)


def test_the_task_of_the_holdout_documents_must_be_among_the_scored_rows(given: dict[str, Any], tmp_path: Path) -> None:
    # Two forget rows are of Task1 and one of Task2: one that is left out has either, so the other is refused.
    outcomes = {}
    for task in ("Task1", "Task2"):
        try:
            run(
                given,
                validation=0.34,
                epochs=1,
                holdout=tmp_path / "unseen.jsonl",
                holdout_task=task,
                out=tmp_path / task,
            )
            outcomes[task] = "finished"
        except SettingsError as error:
            outcomes[task] = str(error)
    assert sorted(outcomes.values())[0] == "finished"
    assert sorted(outcomes.values())[1].startswith("holdout_task: expected a task of the forget rows that are scored")


# Interruptions


def test_an_interruption_costs_no_patience_and_no_checkpoint(
    given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The interruption is scored best of all; the whole run knows nothing of it and keeps the state after epoch 1.
    wanted = {"epochs": 3, "patience": 2, "keep": "best", "learning_rate": 1e-2}
    scored(monkeypatch, score=[0.5, 0.4, 0.4])
    whole = run(given, **wanted)
    assert whole.kept.step == 3
    scored(monkeypatch, score=[0.5, 0.9])
    settings = UnlearnSettings.of({**given, **wanted, "out": tmp_path / "cut"})
    cut = unlearn(settings, observer=After(5, lambda: signal.raise_signal(signal.SIGTERM)))
    assert cut.exit_code == 143
    assert cut.kept.step == 5
    scored(monkeypatch, score=[0.4, 0.4])
    resumed = run(given, **wanted, out=tmp_path / "cut", resume=True)
    assert resumed.reason == whole.reason
    assert resumed.kept.step == 3
    assert same(model_of(whole), model_of(resumed))
    assert not same(model_of(whole), {})
