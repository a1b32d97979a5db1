"""The figure of bench.tradeoff: which numbers are drawn, and where the goals lie."""

import json
from pathlib import Path

import pytest
from bench.tradeoff import main, of_goal, of_real


def _measured(text: float, aggregate: float, auc: float) -> dict[str, object]:
    return {"text": text, "aggregate": aggregate, "auc": auc, "auc_interval": [auc - 0.1, auc + 0.1]}


def _line(method: str, how: str, *seeds: dict[str, object]) -> dict[str, object]:
    return {"method": method, "how": how, "seeds": list(seeds)}


GOAL = {
    "gpt2-general": [
        _line("(before)", "", _measured(4.0, 0.0, 1.0)),
        _line("(never knew)", "", _measured(4.2, 0.9, 0.5)),
        _line("ours", "held", _measured(4.1, 0.9, 0.4), _measured(4.3, 1.0, 0.6)),
        _line("ga", "alone"),  # every run failed
    ]
}


def _model(text: float, aggregate: float, auc: float, *, is_made: bool = True) -> dict[str, object]:
    official = {"task_aggregate": aggregate, "membership_auc": auc, "membership_auc_interval": [auc, auc]}
    return {"text": {"loss": text}, "official": official, **({"cost": {}} if is_made else {})}


REAL = {
    "parts": {
        "lume": {
            "as it came": _model(3.2, 0.0, 0.4, is_made=False),
            "memorised": _model(2.8, 0.0, 1.0),
            "ours": _model(2.8, 1.0, 0.5),
            "ours, seed 1": _model(3.0, 0.9, 0.7),
            "wga": _model(5.8, 0.99, 0.6),
        }
    }
}


def test_a_point_is_the_mean_over_seeds_above_the_target() -> None:
    found = of_goal([GOAL, {"gpt2-general": [_line("wga", "alone", _measured(6.0, 0.99, 0.2))]}])
    assert [(point.name, point.is_ours, point.is_held) for point in found.points] == [
        ("ours", True, True),
        ("wga", False, False),
    ]
    ours, other = found.points
    assert (ours.text, ours.aggregate, ours.auc) == pytest.approx((0.2, 0.95, 0.5))
    assert other.text == pytest.approx(2.0)
    assert found.interval == pytest.approx((0.4, 0.6))


def test_the_seeds_of_the_real_model_are_one_point_and_what_was_not_unlearned_is_none() -> None:
    ours, other = of_real([REAL]).points
    assert (ours.name, other.name) == ("ours", "wga")
    assert (ours.text, ours.aggregate, ours.auc) == pytest.approx((0.1, 0.95, 0.6))
    assert other.text == pytest.approx(3.0)
    assert of_real([REAL]).interval == (0.4, 0.4)


def test_the_figures_are_written_the_same_each_time(tmp_path: Path) -> None:
    files = {}
    for name, found in (("goal", GOAL), ("real", REAL)):
        files[name] = tmp_path / f"{name}.json"
        files[name].write_text(json.dumps(found))
    asked = ["--goal", str(files["goal"]), "--real", str(files["real"]), "--out"]
    main([*asked, str(tmp_path / "one")])
    main([*asked, str(tmp_path / "two")])
    for name in ("gpt2-general.svg", "smollm2-lume.svg"):
        drawn = (tmp_path / "one" / name).read_bytes()
        assert drawn == (tmp_path / "two" / name).read_bytes()
        assert drawn.startswith(b"<?xml")
