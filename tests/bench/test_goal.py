"""The table of the goal: runs that the command takes, cells, and which goals a line reaches."""

from pathlib import Path
from typing import Any

import pytest
from bench.goal import OURS, VARIANTS, GoalJob, Target, reached, table
from bench.methods import BEST_RATES

from letheon.objective.catalogue import METHODS
from letheon.settings import UnlearnSettings
from letheon.unlearning.resolve import resolve_settings

TARGET = Target("made", Path("m"), Path("rows"), "joined", Path("never"))
BEFORE = {
    "aggregate": 0.0, "least_retained": 1.0, "auc": 1.0, "membership": 0.0, "text": 5.0,
    "forget_repeats": 0.0, "retain_repeats": 0.0, "auc_interval": [1.0, 1.0],
}  # fmt: skip
NEVER = {**BEFORE, "auc": 0.5, "auc_interval": [0.4, 0.6]}


def measured(**numbers: Any) -> dict[str, Any]:
    """The numbers of one run."""
    return {**BEFORE, "cost": {"process_s": 10.0, "peak_bytes": 2**30}, "run": {"num_tokens": 2000}, **numbers}


@pytest.mark.parametrize("how", VARIANTS)
@pytest.mark.parametrize("name", [*OURS, *METHODS])
def test_every_line_is_a_run_that_the_command_takes(name: str, how: str) -> None:
    job = GoalJob(TARGET, Path("data"), Path("out"), seeds=[0])
    settings = resolve_settings(
        UnlearnSettings.of({**TARGET.inputs, **job.settings(name, how, seed=1), "out": Path("run")})
    )
    assert settings.seed == 1
    assert settings.method == ("low-rank-npo" if name in OURS else name)
    assert settings.learning_rate == ("auto" if name in OURS else BEST_RATES[name])
    needs_unseen = METHODS[settings.method].settings.get("general") == "holdout"
    assert (settings.dial == "membership") is (how == "held")
    assert (settings.holdout is not None) is (how == "held" or needs_unseen)


def test_a_rate_stands_for_every_method() -> None:
    assert set(BEST_RATES) == set(METHODS)


def test_goals_are_reached_by_means() -> None:
    good = measured(aggregate=0.96, auc=0.45, text=5.29)
    assert reached([good], BEFORE, NEVER) == ["aggregate", "membership", "text", "fluent"]
    bad = measured(aggregate=0.9, auc=0.65, text=5.4, forget_repeats=0.1)
    assert reached([bad], BEFORE, NEVER) == []
    assert reached([measured(aggregate=1.0, auc=0.2), measured(aggregate=0.9, auc=0.7)], BEFORE, NEVER) == [
        "aggregate", "membership", "text", "fluent",
    ]  # fmt: skip
    assert "membership" not in reached([good], BEFORE, None)
    assert reached([], BEFORE, NEVER) == []


def test_cells_are_means_and_deviations_and_a_failed_method_is_empty() -> None:
    runs = [measured(aggregate=0.9), measured(aggregate=1.0)]
    lines = [("(before)", "", [BEFORE]), ("(never knew)", "", [NEVER]), ("ours", "held", runs), ("ga", "alone", [])]
    shown = table("made", lines)
    cells = [dict(zip(shown.columns, row, strict=True)) for row in shown.rows]
    assert cells[2]["task aggregate"] == "0.950 ± 0.071"
    assert cells[2]["1,000 tokens"] == "2 ± 0"
    assert cells[2]["MiB"] == "1024 ± 0"
    assert cells[0]["CPU s"] == ""
    assert cells[3]["task aggregate"] == cells[3]["goals reached"] == ""
