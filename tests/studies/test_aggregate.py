"""What is said of a study's numbers: worked by hand, and the same in every form."""

import csv
import io
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from letheon.report.latex import to_latex, to_latex_text
from letheon.report.tables import Spread, Table, to_csv, to_markdown, to_rich
from letheon.studies.aggregate import comparisons_of, rows_of, seed_moves, sensitivities
from letheon.studies.figures import FIGURES, epochs_figure, heat_figure, save_study_figures, trade_off_figure
from letheon.studies.grid import Role
from letheon.studies.records import RunRecord, StateScores, StudyRecord
from letheon.studies.report import print_study, write_study_report
from letheon.studies.shown_scores import scores_in, trade_off_in
from letheon.studies.spec import StudySettings
from letheon.studies.statistics import bootstrap_interval, deviation, holm, paired, pareto_front, sign_flip_p
from letheon.studies.tables import comparison_table, scores_data, scores_table, sensitivity_table, trade_off_table


def runs(
    values: Mapping[str, Any], by_seed: Sequence[dict[str, float] | None], *, role: Role = "study"
) -> list[RunRecord]:
    """Runs of one configuration; None for one that diverged."""
    label = ", ".join(f"{name}={value:g}" for name, value in values.items())
    return [
        RunRecord(
            name=f"{label}, seed {seed}",
            identity=f"{label}{seed}",
            folder=f"runs/{label}{seed}",
            configuration=label,
            values=values,
            seed=seed,
            role=role,
            state="diverged" if found is None else "finished",
            states=() if found is None else (StateScores(20, True, found),),
        )
        for seed, found in enumerate(by_seed)
    ]


def record_of(*configurations: list[RunRecord], **study: Any) -> StudyRecord:
    return StudyRecord(
        StudySettings.of({"name": "s", **study}), tuple(run for found in configurations for run in found)
    )


def test_deviations_are_named_for_what_they_divide_by() -> None:
    # 1, 2, 4, 5: mean 3, squares 4 + 1 + 1 + 4 = 10; 10 / 3 and 10 / 4.
    assert deviation([1, 2, 4, 5], "sample") == pytest.approx(math.sqrt(10 / 3))
    assert deviation([1, 2, 4, 5], "population") == pytest.approx(math.sqrt(2.5))
    assert deviation([1], "sample") is None
    assert deviation([1], "population") == 0
    assert deviation([], "population") is None


def test_the_bootstrap_of_few_values_is_exact() -> None:
    # Of two values the resamples have means 0, 1/2, 1/2, 1, each a quarter: the middle 95% reach from 0 to 1.
    assert bootstrap_interval([0.0, 1.0]) == (0.0, 1.0)
    assert bootstrap_interval([0.0, 1.0], level=0.5) == (0.0, 0.5)
    # Of three, 27 resamples: 000 alone is 1/27 = 3.7% > 2.5%, so that the ends are the extremes here too.
    assert bootstrap_interval([0.0, 0.0, 3.0]) == (0.0, 3.0)
    assert bootstrap_interval([0.7]) is None


def test_the_bootstrap_of_many_values_is_that_of_few_to_its_noise() -> None:
    values = list(np.random.default_rng(0).normal(size=40))
    low, high = bootstrap_interval(values) or (0, 0)
    half = 1.96 * np.std(values) / math.sqrt(40)
    assert low == pytest.approx(np.mean(values) - half, abs=0.05)
    assert high == pytest.approx(np.mean(values) + half, abs=0.05)
    assert bootstrap_interval(values) == (low, high)


def test_a_paired_comparison_by_hand() -> None:
    # Differences 1, 2, 3: mean 2, deviation 1, error 1 / sqrt(3), t = 2 sqrt(3) = 3.4641 with 2 degrees of freedom.
    # There P(|T| > t) = 1 - t / sqrt(2 + t^2) = 1 - 3.4641 / sqrt(14) = 0.0741799.
    found = paired({0: 2, 1: 4, 2: 6, 9: 1}, {0: 1, 1: 2, 2: 3})
    assert found is not None
    assert (found.num_seeds, found.difference) == (3, 2)
    assert found.p == pytest.approx(0.0741799, abs=1e-7)
    # t at 97.5% with 2 degrees is 4.302653.
    assert found.high == pytest.approx(2 + 4.302653 / math.sqrt(3), abs=1e-5)
    assert found.low == pytest.approx(2 - 4.302653 / math.sqrt(3), abs=1e-5)
    # Of the 8 sign patterns only +++ and --- lie as far out.
    assert found.p_flips == 0.25
    assert paired({0: 1}, {0: 2}) is None
    assert paired({0: 1, 1: 2}, {2: 1, 3: 2}) is None


def test_differences_without_spread_have_no_t() -> None:
    found = paired(dict.fromkeys(range(5), 0.75), dict.fromkeys(range(5), 0.5))
    assert found is not None
    assert (found.low, found.high, found.p) == (0.25, 0.25, 2 / 32)
    same = paired(dict.fromkeys(range(5), 0.5), dict.fromkeys(range(5), 0.5))
    assert same is not None
    assert same.p == 1


def test_sign_flips_by_hand() -> None:
    # 3, -1: sums of the four patterns are 2, 4, -4, -2; all are at least 2 from 0.
    assert sign_flip_p(np.array([3.0, -1.0])) == 1
    assert sign_flip_p(np.arange(1.0, 6.0)) == 2 / 32
    assert sign_flip_p(np.ones(20)) == pytest.approx(2 / 2**20, abs=1e-4)
    assert sign_flip_p(np.zeros(3)) == 1


@pytest.mark.parametrize("num", [2, 5, 9])
def test_sign_flips_are_those_of_a_count_of_all_patterns(num: int) -> None:
    # Tenths, whose sums would not be equal to the last bit.
    drawn = np.random.default_rng(num)
    for _ in range(20):
        differences = drawn.integers(-5, 6, size=num) / 10
        sums = [abs(np.dot(signs, differences)) for signs in itertools.product((1, -1), repeat=num)]
        as_far = [total >= abs(differences.sum()) - 1e-9 for total in sums]
        assert sign_flip_p(differences) == pytest.approx(np.mean(as_far))


def test_holm_by_hand() -> None:
    # In order 0.01, 0.02, 0.03, 0.04: times 4, 3, 2, 1 is 0.04, 0.06, 0.06, 0.04, made to rise.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_holm_keeps_the_order_and_is_between_p_and_bonferroni(p_values: list[float]) -> None:
    corrected = holm(p_values)
    for p, after in zip(p_values, corrected, strict=True):
        assert p <= after <= min(1.0, len(p_values) * p) + 1e-12 or after == pytest.approx(max(corrected))
    ordered = [after for _, after in sorted(zip(p_values, corrected, strict=True))]
    assert ordered == sorted(ordered)


def test_a_pareto_front_by_hand() -> None:
    points = [(0.1, 0.9), (0.5, 0.5), (0.4, 0.5), (0.9, 0.1), (0.5, 0.4), (0.9, 0.05)]
    assert pareto_front(points) == [3, 1, 0]
    assert pareto_front([]) == []


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12))
@settings(max_examples=80, deadline=None, derandomize=True)
def test_a_pareto_front_is_what_nothing_beats(points: list[tuple[int, int]]) -> None:
    def beats(a: tuple[int, int], b: tuple[int, int]) -> bool:
        return a[0] >= b[0] and a[1] >= b[1] and a != b

    front = {points[index] for index in pareto_front([(float(x), float(y)) for x, y in points])}
    assert front == {point for point in points if not any(beats(other, point) for other in points)}


def noisy_winner() -> StudyRecord:
    """b is best by a hair, a is within the noise, c is clearly lower; all forgot."""
    record = record_of(
        runs({"gamma": 1}, [{"final": v, "forgotten": 0.95} for v in (0.50, 0.60, 0.55)]),
        runs({"gamma": 2}, [{"final": v, "forgotten": 0.95} for v in (0.58, 0.53, 0.56)]),
        runs({"gamma": 3}, [{"final": v, "forgotten": 0.95} for v in (0.10, 0.16, 0.12)]),
    )
    return replace(record, original={"m": StateScores(0, False, {"forgotten": 0.05})})


def test_noise_is_not_sold_as_a_winner() -> None:
    record = noisy_winner()
    rows = rows_of(record, ("final",))
    assert [row.summaries["final"].is_best for row in rows] == [True, True, False]
    # Means .55, .55667, .12667.
    assert rows[0].summaries["final"].mean == pytest.approx(0.55)
    assert rows[1].summaries["final"].mean == pytest.approx(0.556667, abs=1e-6)
    text = to_markdown(scores_table(record))
    assert "| gamma=1 | 3 | **0.550 ± 0.050 (0.500–0.600)** |" in text
    assert "| gamma=3 | 3 | 0.127 ± 0.031 (0.100–0.160) |" in text


def test_one_seed_marks_nothing() -> None:
    record = record_of(runs({"gamma": 1}, [{"final": 0.5}]), runs({"gamma": 2}, [{"final": 0.9}]))
    table = scores_table(record)
    assert not any(cell.is_best for row in table.rows for cell in row if isinstance(cell, Spread))
    assert "One seed" in table.notes[0]
    assert comparison_table(record) is None


def test_comparisons_are_corrected_and_say_against_what() -> None:
    record = noisy_winner()
    rows = rows_of(record, ("final",))
    against_best = comparisons_of(record, rows, "final")
    assert [(one.first, one.second) for one in against_best] == [("gamma=2", "gamma=1"), ("gamma=2", "gamma=3")]
    assert [one.p_holm for one in against_best] == pytest.approx(holm([one.found.p for one in against_best]))
    everything = record_of(*[list(record.runs)], compare="all")
    assert len(comparisons_of(everything, rows, "final")) == 3
    named = record_of(*[list(record.runs)], compare={"gamma": 3})
    assert [one.first for one in comparisons_of(named, rows, "final")] == ["gamma=3"] * 2


def test_configurations_are_compared_at_the_same_epoch() -> None:
    found = [
        replace(run, states=(StateScores(4, False, {"final": 0.1 * run.seed}), *run.states))
        for gamma in (1, 2)
        for run in runs({"gamma": gamma}, [{"final": 0.6}, {"final": 0.5}])
    ]
    record = record_of(found, evaluate={"epochs": [4, 20]}, compare={"gamma": 1})
    compared = comparisons_of(record, rows_of(record, ("final",)), "final")
    assert [(one.first, one.second) for one in compared] == [
        ("gamma=1, epoch 4", "gamma=2, epoch 4"),
        ("gamma=1, epoch 20", "gamma=2, epoch 20"),
    ]


def test_states_that_runs_kept_at_another_epoch_have_a_row() -> None:
    kept = [StateScores(18, True, {"final": 0.9}), StateScores(4, True, {"final": 0.7})]
    found = [
        replace(run, states=(StateScores(4, False, {"final": 0.1}), state) if state.epoch > 4 else (state,))
        for run, state in zip(runs({"gamma": 1}, [{"final": 0.0}, {"final": 0.0}]), kept, strict=True)
    ]
    record = record_of(found, evaluate={"epochs": [4, 30]})
    at_four, result = rows_of(record, ("final",))
    assert (at_four.epoch, list(at_four.scores["final"].values())) == (4, [0.1, 0.7])
    assert (result.epoch, list(result.scores["final"].values())) == (None, [0.9, 0.7])
    assert [row[1] for row in scores_table(record).rows] == ["4", "kept"]


def test_of_several_that_fit_the_one_named_in_full_is_compared() -> None:
    scores: list[dict[str, float] | None] = [{"final": 0.5}, {"final": 0.6}]
    configurations = ({"gamma": 1}, {"gamma": 1, "delta": 2}, {"gamma": 2})
    record = record_of(*[runs(values, scores) for values in configurations], compare={"gamma": 1})
    compared = comparisons_of(record, rows_of(record, ("final",)), "final")
    assert [(one.first, one.second) for one in compared] == [("gamma=1", "gamma=1, delta=2"), ("gamma=1", "gamma=2")]


def test_tables_and_figures_of_a_report_before_are_gone(tmp_path: Path) -> None:
    failed = record_of(runs({"gamma": 1}, [{"final": 0.5}, None]), runs({"gamma": 2}, [{"final": 0.6}, {"final": 0.7}]))
    write_study_report(failed, tmp_path)
    (tmp_path / "figures" / "mine.txt").touch()
    assert (tmp_path / "tables" / "unfinished.tex").exists()
    assert (tmp_path / "figures" / "seeds.svg").exists()
    write_study_report(record_of(), tmp_path)
    assert {path.name for path in (tmp_path / "tables").iterdir()} == {"scores.csv", "runs.csv"}
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["mine.txt"]


def test_runs_without_a_result_are_counted_and_left_out() -> None:
    record = record_of(runs({"gamma": 1}, [{"final": 0.5}, None, {"final": 0.7}]))
    table = scores_table(record)
    assert table.rows[0][1] == "2 of 3"
    assert any("1 diverged" in note for note in table.notes)
    assert rows_of(record, ("final",))[0].summaries["final"].mean == pytest.approx(0.6)


def crossed() -> StudyRecord:
    """Retained moves by 0.2 with gamma, forgotten by 0.1; delta moves forgotten by 0.3 and retained by nothing."""
    found = []
    for gamma in (0, 1):
        for delta in (0, 1):
            values = {"forgotten": 0.4 + 0.1 * gamma + 0.3 * delta, "retained": 0.9 - 0.2 * gamma}
            found.append(
                runs({"gamma": gamma, "delta": delta}, [{n: v + s for n, v in values.items()} for s in (0, 0.01)])
            )
    return record_of(*found)


def test_sensitivity_by_hand() -> None:
    record = crossed()
    names = trade_off_in(record)
    assert names == ("forgotten", "retained")
    rows = rows_of(record, names)
    gamma, delta = sensitivities(rows, names)
    assert (gamma.setting, gamma.num_pairs) == ("gamma", 2)
    assert (gamma.forgotten, gamma.retained) == pytest.approx((0.1, 0.2))
    assert (delta.forgotten, delta.retained) == pytest.approx((0.3, 0.0), abs=1e-12)
    # Both seeds agree, so that every resample gives the same.
    assert gamma.excess == pytest.approx((0.1, 0.1))
    # Each configuration has deviation 0.01 / sqrt(2); 2 s / sqrt(pi 2) = 0.01 / sqrt(pi).
    assert seed_moves(rows, "forgotten") == pytest.approx(0.01 / math.sqrt(math.pi))
    table = sensitivity_table(record)
    assert table is not None
    assert [row[0] for row in table.rows] == ["gamma", "delta", "(seeds alone)"]


def test_seed_moves_are_what_equal_configurations_lie_apart() -> None:
    generator = np.random.default_rng(1)
    found = [
        runs({"gamma": n}, [{"forgotten": v, "retained": 1.0} for v in generator.normal(0.5, 0.1, size=5)])
        for n in range(400)
    ]
    rows = rows_of(record_of(*found), ("forgotten",))
    means = np.array([row.summaries["forgotten"].mean for row in rows])
    apart = np.abs(means[:200] - means[200:]).mean()
    assert seed_moves(rows, "forgotten") == pytest.approx(apart, rel=0.15)  # 200 pairs: about 5% of noise


def test_a_setting_that_never_changes_alone_is_left_out() -> None:
    record = record_of(
        runs({"gamma": 0, "delta": 1}, [{"forgotten": 0.1, "retained": 0.2}]),
        runs({"gamma": 1, "delta": 0}, [{"forgotten": 0.2, "retained": 0.2}]),
    )
    assert sensitivity_table(record) is None
    assert sensitivities([], ("forgotten", "retained")) == []


def full_study() -> StudyRecord:
    """Two settings, two epochs, a baseline, the original model, a published row, and names that are no markup."""
    generator = np.random.default_rng(0)

    def states() -> tuple[StateScores, ...]:
        def one(epoch: float) -> StateScores:
            task, mia = generator.uniform(0.3, 0.6, size=2)
            official = {"task_aggregate": task, "mia.score": mia, "final": (task + mia) / 2}
            return StateScores(epoch, epoch == 20, {**official, "forgotten": task, "retained": 1 - task / 2})

        return one(10), one(20)

    configurations: list[tuple[str, dict[str, float], Role]] = [
        ("gamma=1, delta=0", {"gamma": 1.0, "delta": 0.0}, "study"),
        ("gamma=1, delta=1", {"gamma": 1.0, "delta": 1.0}, "study"),
        ("gamma=2, delta=1", {"gamma": 2.0, "delta": 1.0}, "study"),
        ("50% & <b>_x_", {}, "baseline"),
    ]
    found = [
        RunRecord(f"{label} {seed}", f"{label} {seed}", "f", label, values, seed, role, "finished", states=states())
        for label, values, role in configurations
        for seed in range(3)
    ]
    study = StudySettings.of(
        {
            "name": "full",
            "evaluate": {"epochs": [10, 20]},
            "published": {"theirs": {"final": 0.4}},
            "deviation": "population",
        }
    )
    start = {"task_aggregate": 0.0, "mia.score": 0.0, "final": 0.0, "forgotten": 0.0, "retained": 1.0}
    return StudyRecord(study, tuple(found), {"m": StateScores(0, False, start)})


def test_epochs_are_rows_and_others_stand_below() -> None:
    table = scores_table(full_study())
    assert table.columns == ("Configuration", "Epoch", "Seeds", "Task score", "MIA score", "Final score")
    assert [row[1] for row in table.rows[:3]] == ["10", "20", "10"]
    assert table.sections == (6, 8, 9)
    assert [row[0] for row in table.rows[-2:]] == ["Original model", "theirs (published)"]
    assert table.rows[-1][3] is None
    assert "population standard deviation (divided by n)" in table.notes[0]


def test_every_form_holds_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("letheon.studies.figures.save_study_figures", lambda record, folder: (folder / "epochs.png",))
    record = full_study()
    row = rows_of(record, scores_in(record))[0].summaries["final"]
    shown = f"{row.mean:.3f} ± {row.deviation:.3f}"
    write_study_report(record, tmp_path)
    assert shown in (tmp_path / "tables" / "scores.md").read_text()
    assert shown.replace("±", r"$\pm$") in (tmp_path / "tables" / "scores.tex").read_text()
    lines = list(csv.DictReader(io.StringIO((tmp_path / "tables" / "scores.csv").read_text())))
    found = next(line for line in lines if line["score"] == "final" and line["epoch"] == "10.0")
    assert float(found["mean"]) == row.mean
    assert float(found["population_deviation"]) == row.deviation
    assert float(found["sample_deviation"]) == pytest.approx((row.deviation or 0) * math.sqrt(3 / 2))
    console = Console(width=200, record=True)
    print_study(record, console)
    assert shown in console.export_text()
    each = list(csv.DictReader(io.StringIO((tmp_path / "tables" / "runs.csv").read_text())))
    assert len(each) == 12 * 2
    assert "figures/epochs.png" in (tmp_path / "study.md").read_text()


def test_latex_shows_text_and_sets_the_best_in_bold() -> None:
    table = Table(
        "50% of A_1 & {B}",
        ("Name", "Score"),
        (("a\\b$~^#", Spread(0.5, 0.1, 0.4, 0.6, True)), ("<b>", Spread(-0.25, None, -0.5, 0.125)), ("c", None)),
        ("a note",),
        (1,),
    )
    text = to_latex(table)
    assert r"\caption{50\% of A\_1 \& \{B\}}" in text
    assert r"a\textbackslash{}b\$\textasciitilde{}\textasciicircum{}\# & \textbf{0.500 $\pm$ 0.100} " in text
    assert r"{\scriptsize (0.400--0.600)} \\" in text
    assert r"\textless{}b\textgreater{} & -0.250 {\scriptsize (-0.500 to 0.125)} \\" in text
    assert "c & --- " in text
    assert text.count(r"\midrule") == 2
    assert r"\begin{tabular}{lr}" in text
    assert to_latex_text("\x1b\n") == r"\textbackslash{}x1b\textbackslash{}n"


def test_bold_reaches_markdown_and_terminal_alone() -> None:
    table = Table("t", ("Name", "Score"), (("a", Spread(0.5, is_best=True)), ("b", Spread(0.25))))
    assert "| a | **0.500** |" in to_markdown(table)
    assert "| b | 0.250 |" in to_markdown(table)
    console = Console(width=60, force_terminal=True, color_system="standard", record=True)
    console.print(to_rich(table))
    assert "\x1b[1m0.500" in console.export_text(styles=True)
    assert "0.500\n" in to_csv(table)


@pytest.mark.slow
def test_figures_are_drawn_where_there_are_numbers_for_them(tmp_path: Path) -> None:
    record = full_study()
    written = save_study_figures(record, tmp_path)
    assert len(written) == 3 * len(FIGURES.keys() - {"suite"}) == 12  # LUME has no figure of its own
    assert all(path.stat().st_size > 1000 for path in written)
    bare = record_of(runs({"gamma": 1}, [None]))
    assert all(draw(bare) is None for draw in FIGURES.values())
    one = record_of(runs({"gamma": 1}, [{"final": 0.5}]))
    assert epochs_figure(one) is None
    assert heat_figure(one) is None
    assert trade_off_figure(one) is None


def test_figures_hold_what_the_tables_say() -> None:
    record = full_study()
    figure = epochs_figure(record)
    assert figure is not None
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["Task score", "MIA score", "Final score"]
    row = next(row for row in rows_of(record, scores_in(record)) if row.epoch == 20)
    line = figure.axes[2].lines[0]
    assert line.get_ydata()[0] == 0  # type: ignore[index]  # the original model
    assert line.get_ydata()[2] == pytest.approx(row.summaries["final"].mean)  # type: ignore[index]
    heat = heat_figure(record)
    assert heat is not None
    grid = heat.axes[0].collections[0].get_array()
    assert grid is not None
    assert grid.shape == (2, 2)
    assert [text.get_text() for text in heat.axes[0].texts].count("–") == 1  # gamma 2, delta 0 was not run
    table = trade_off_table(record)
    assert table is not None
    assert table.columns[-2:] == ("Forgotten", "Retained")


def test_the_data_table_names_both_deviations() -> None:
    columns = scores_data(full_study()).columns
    assert {"sample_deviation", "population_deviation"} <= set(columns)
