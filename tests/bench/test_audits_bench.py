"""The table of methods under attack: settings that the command takes, and cells that say what an audit found."""

import subprocess
from pathlib import Path

import pytest
from bench.audits import COLUMNS, MADE, OWN, VARIANTS, audited_cells, memorized, settings_of
from bench.methods import flags

from bench import audits
from letheon.objective.catalogue import METHODS
from letheon.scores.audits import AuditResults, Effect
from letheon.scores.score import Score, Scores
from letheon.settings import UnlearnSettings
from letheon.unlearning.resolve import resolve_settings


@pytest.mark.parametrize("name", [*METHODS, *VARIANTS])
def test_every_method_and_variant_is_a_run_that_the_command_takes(name: str) -> None:
    inputs = {"model": "m", "forget": "f.jsonl", "retain": "r.jsonl", "out": Path("run")}
    settings = resolve_settings(
        UnlearnSettings.of({**inputs, **settings_of(name, template="joined", unseen=Path("unseen.jsonl"))})
    )
    assert settings.method == (name if name in METHODS else "low-rank-npo")
    own = VARIANTS[name] if name in VARIANTS else OWN.get(name, {})
    assert settings.epochs == own.get("epochs", 12)


@pytest.mark.parametrize("made", MADE.values(), ids=MADE)
def test_the_never_knew_model_learns_its_rows_alone_with_the_tokenizer_of_the_target(
    made: audits.Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def memorize(*arguments: object) -> subprocess.CompletedProcess[str]:
        commands.append([str(argument) for argument in arguments])
        return subprocess.CompletedProcess(commands[-1], 0, "", "")

    monkeypatch.setattr(audits, "letheon", memorize)
    knows = memorized(made, [Path("forget.jsonl"), Path("retain.jsonl")], tmp_path / "knows")
    memorized(made, [Path("retain.jsonl")], tmp_path / "never", tokenizer=knows)
    of_target, of_control = commands
    assert "forget.jsonl" in of_target
    assert "forget.jsonl" not in of_control
    assert of_control[of_control.index("--tokenizer") + 1] == str(knows)
    assert of_target[of_target.index("--seed") + 1] != of_control[of_control.index("--seed") + 1]
    assert set(made.model) <= set(of_target) & set(of_control)


def test_settings_are_flags() -> None:
    given = {"learning_rate": 0.01, "coefficients": {"scale": 6.5, "retain_weight": 12.0}}
    assert list(flags(given)) == ["--learning-rate=0.01", "--coefficients=scale=6.5,retain_weight=12.0"]


def test_cells_have_intervals_and_what_was_not_measured_is_empty() -> None:
    nothing = Effect(0.02, 0.0, 0.04)
    found = AuditResults(
        verdict="hidden",
        reason="Sampling brings it back",
        attack="sampling",
        needed_rows=None,
        thresholds={},
        controls={},
        missing={},
        compared_with="never",
        num_rows={},
        known={},
        remaining=nothing,
        num_leaked=0,
        attacks=(),
        left_out={},
        scores=Scores((Score("audit.sampling", "Sampling", "lower", "forgetting", 0.5, (0.4, 0.625), bounds=None),)),
    )
    cells = dict(zip(("given", *COLUMNS, "verdict"), audited_cells(found, COLUMNS), strict=True))
    assert cells.pop("given") == "0.02 (0.00 to 0.04)"
    assert cells.pop("audit.sampling") == "0.50 (0.40 to 0.62)"
    assert cells.pop("verdict") == "hidden, sampling"
    assert set(cells.values()) == {""}
