"""Every method, from the table of methods itself: it runs, forgets, repeats, resumes, and is no other's alias."""

import math
import signal
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from letheon.data.rows import Row
from letheon.model.loading import load_model
from letheon.objective.catalogue import METHODS
from letheon.objective.parts import Term, needs_of
from letheon.objective.values import Needs
from letheon.settings import UnlearnSettings
from letheon.training.checkpoint import newest_checkpoint
from letheon.training.step import accumulate
from letheon.training.tracking import Silent
from letheon.unlearning.inputs import read_inputs
from letheon.unlearning.prepare import prepare
from letheon.unlearning.record import RunReport
from letheon.unlearning.resolve import resolve_settings, terms_of
from letheon.unlearning.run import unlearn
from running import After, answer_loss, events, knowing_model, model_of, run, same, short_run, unseen_for

SMALL_RISE = {
    "simnpo": "its forget term weighs 0.125",
    "satimp": "p^5 (1 - p) is near 0 for what is known well and for what is not",
    "rmu": "states of one layer are drawn to a vector, which the layers above undo at first",
    "adaptive-rmu": "likewise",
    "task-vector": "it learns what is known already, so that its gradient is small, before it subtracts that",
}
"""Methods that raise the loss of the forget answers by little in so few steps, and why."""

VARIED: dict[str, dict[str, Any]] = {
    "pdu": {"coefficients": {"warm_up_epochs": 1}},
    "constrained": {"coefficients": {"least": 0.05}, "learning_rate": 5e-3},
    "sugd": {"chunk_size": 2, "retain_ratio": 2, "batch_size": 3},
    "agad": {"chunk_size": 2},
}
"""Settings under which what a method has beyond a loss (a control, blocks of steps) shows in a short run."""

APART = (
    *("low-rank-npo", "neko", "npo", "idk-dpo", "alt-po", "rmu", "pdu", "sugd", "agad", "npo-ties", "constrained"),
    *("stat", "task-vector"),
)
"""Methods that differ in more than the loss: schedule, what is trained, alternatives, control, finish."""

SLOW_IF_ALIKE = [name if name in APART else pytest.param(name, marks=pytest.mark.slow) for name in METHODS]
"""All methods as parameters of a test; those that run as another one does, with another loss, are slow tests."""

SLOW_IF_SEEDED_ALIKE = [
    name if name in ("low-rank-npo", "alt-po", "sugd") else pytest.param(name, marks=pytest.mark.slow)
    for name in METHODS
]
"""All methods; the fast ones draw rows, their own alternatives, and blocks of steps. That two runs of one seed are the
same shows in the tests of interrupted runs too."""

IN_DTYPES = [
    pytest.param(
        name, dtype, marks=pytest.mark.slow if dtype == "bfloat16" and name not in ("low-rank-npo", "neko") else ()
    )
    for name in METHODS
    for dtype in ("float32", "bfloat16")
]
"""All methods in both types; that a loss is finite in bfloat16 is a fast test of the loss."""


def settings_of(method: str, given: dict[str, Any], **changed: Any) -> UnlearnSettings:
    by_weights = METHODS[method].settings.get("adapt") == "weights"
    shared: dict[str, Any] = {
        "learning_rate": 1e-3 if by_weights else 1e-2,
        "learning_rate_schedule": "linear",
        "keep": "last",
    }
    if not by_weights and "target_modules" not in METHODS[method].settings:
        shared["target_modules"] = ("q_proj", "v_proj")  # steps of 1e-2 on all layers break the retain rows too
    shared |= unseen_for(method, Path(given["out"]).parent)
    return UnlearnSettings.of({**given, **shared, "method": method, "checkpoint_epochs": 3, **changed})


@pytest.fixture
def given(tmp_path: Path, rows: list[Row], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    return short_run(tmp_path, rows, knowing_model(tokenizer, rows), tokenizer)


def whole_run(method: str, given: dict[str, Any], **changed: Any) -> RunReport:
    return unlearn(settings_of(method, given, **{**VARIED.get(method, {}), **changed}))


@dataclass(frozen=True)
class Whole:
    """What an uninterrupted run left."""

    report: RunReport
    weights: dict[str, Tensor]
    steps: list[dict[str, Any]]


_WHOLE: dict[str, Whole] = {}


def whole(method: str, given: dict[str, Any]) -> Whole:
    """The method's uninterrupted run, made once: it does not depend on the folder."""
    if method not in _WHOLE:
        report = whole_run(method, given, out=given["out"].with_name("whole"))
        _WHOLE[method] = Whole(report, model_of(report), steps_of(report))
    return _WHOLE[method]


def steps_of(report: RunReport) -> list[dict[str, Any]]:
    """The log's lines of all steps, without the time they took."""
    return [{k: v for k, v in line.items() if k != "duration_s"} for line in events(report.folder, "step")]


@pytest.mark.parametrize(("method", "dtype"), IN_DTYPES)
def test_it_finishes_and_forgets(
    method: str, dtype: str, given: dict[str, Any], rows: list[Row], tokenizer: PreTrainedTokenizerBase
) -> None:
    before = AutoModelForCausalLM.from_pretrained(given["model"])
    base = AutoModelForCausalLM.from_pretrained(given["model"])
    report = unlearn(settings_of(method, given, dtype=dtype, learning_rate_schedule="constant"))
    assert report.reason == "finished"
    for line in events(report.folder, "step"):
        numbers = [line["loss"], line["gradient_norm"], *(v for v in line["terms"].values() if v is not None)]
        assert all(number is not None and math.isfinite(number) for number in numbers)
    after = AutoModelForCausalLM.from_pretrained(report.model)
    assert type(after) is type(before)
    assert after.dtype == getattr(torch, dtype)
    assert all(torch.isfinite(value).all() for value in after.state_dict().values())
    rise = answer_loss(after, tokenizer, rows[:3]) - answer_loss(before, tokenizer, rows[:3])
    assert rise > (0.005 if method in SMALL_RISE else 0.05)
    terms = terms_of(METHODS[method], resolve_settings(settings_of(method, given)), layer=1)
    if any(term.role == "retain" for term in terms):
        # By heart the retain answers cost 0.33 nats a token, by chance 5.9.
        assert answer_loss(after, tokenizer, rows[3:]) < answer_loss(before, tokenizer, rows[3:]) + 0.5
    if (report.folder / "adapter").exists() and dtype == "float32":
        adapted = PeftModel.from_pretrained(base, report.folder / "adapter")
        ids = torch.arange(5, 25)[None]
        with torch.no_grad():
            assert torch.allclose(adapted(ids).logits, after(ids).logits, atol=1e-4)


@pytest.mark.parametrize("method", SLOW_IF_SEEDED_ALIKE)
def test_the_same_seed_gives_the_same_bytes_and_another_others(
    method: str, given: dict[str, Any], tmp_path: Path
) -> None:
    first = whole(method, given)
    second = whole_run(method, given, out=tmp_path / "second")
    other = whole_run(method, given, out=tmp_path / "other", seed=1)
    assert same(first.weights, model_of(second))
    assert first.steps == steps_of(second)
    assert not same(first.weights, model_of(other))


@pytest.mark.parametrize("method", SLOW_IF_ALIKE)
def test_interrupted_twice_and_resumed_it_ends_as_the_whole_run(
    method: str, given: dict[str, Any], tmp_path: Path
) -> None:
    expected = whole(method, given)
    num_steps = expected.report.num_steps
    folder = tmp_path / "cut"
    for resume in (False, True):
        settings = settings_of(method, given, **VARIED.get(method, {}), out=folder, resume=resume)
        stop = After(max(num_steps // 3, 1), lambda: signal.raise_signal(signal.SIGTERM))
        assert unlearn(settings, observer=stop).exit_code == 143
    resumed = whole_run(method, given, out=folder, resume=True)
    assert resumed.exit_code == 0
    assert resumed.num_steps == num_steps
    assert same(expected.weights, model_of(resumed))
    assert steps_of(resumed) == expected.steps
    assert resumed.kept == expected.report.kept
    if METHODS[method].control is not None:
        # What would be lost with the control's state has changed by the last interruption.
        states = [line["control"] for line in expected.steps]
        assert states[num_steps // 3] != states[0]
        weights = [state.get("lambda", state.get("factor")) for state in states]
        assert len(set(weights)) > 1


def step_gradient(method: str, given: dict[str, Any]) -> Tensor:
    """The gradient of a method's loss on all rows at once, at a state away from the reference, adapter trained."""
    declared = METHODS[method]
    layer = {"coefficients": {declared.layer: 1}} if declared.layer else {}
    settings = resolve_settings(settings_of(method, given, adapt="lora", target_modules=("q_proj", "v_proj"), **layer))
    loaded, inputs = load_model(settings.model), read_inputs(settings)
    problem = prepare(loaded, inputs, settings, method=declared, cache_dir=None, observer=Silent()).problem
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in problem.adapted.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    factors = problem.control.factors(problem.control.begin()) if problem.control else {}
    rows = problem.with_others(range(6), epoch=0)
    with problem.engine.running():
        accumulate(problem, rows, max_tokens=10_000, factors=factors)
    return torch.cat([p.grad.flatten() for p in problem.adapted.parameters() if p.grad is not None])


@pytest.mark.slow
def test_no_method_is_another_under_a_second_name(given: dict[str, Any]) -> None:
    found = {method: step_gradient(method, given) for method in METHODS}
    assert {len(gradient) for gradient in found.values()} == {len(found["ga"])}
    for (name, first), (other, second) in combinations(found.items(), 2):
        schedules = [METHODS[m].settings.get("schedule", "mixed") for m in (name, other)]
        difference = float((first - second).norm() / first.norm())
        # The same loss on other steps is another method (AGAD anneals between chunks what GD mixes).
        # SimNPO and SatImp, whose forget terms weigh least beside an equal retain term, are 5e-3 apart.
        assert difference > 1e-3 or schedules[0] != schedules[1], (name, other)
    same_loss = [pair for pair in combinations(found, 2) if torch.allclose(found[pair[0]], found[pair[1]], rtol=1e-3)]
    assert same_loss == [("gd", "agad")]


def test_the_two_runs_of_a_merge_have_weights_of_their_own(given: dict[str, Any], tmp_path: Path) -> None:
    report = whole_run("npo-ties", given)
    assert [p.name for p in sorted((report.folder / "checkpoints").iterdir())] == ["member-1", "member-2"]
    lines = events(report.folder, "step")
    assert [line["step"] for line in lines] == [*range(1, 10), *range(1, 10)]
    # (0.4, 0.4, 0.2) and (0.3, 0.3, 0.4) of NPO, KL and NLL, on the same first rows from the same start.
    first, second = lines[0], lines[9]
    assert first["terms"] == second["terms"]
    for line, weights in ((first, (0.4, 0.4, 0.2)), (second, (0.3, 0.3, 0.4))):
        values = [line["terms"][name] or 0.0 for name in ("npo", "retain_kl", "retain_nll")]
        assert line["loss"] == pytest.approx(sum(w * v for w, v in zip(weights, values, strict=True)), abs=1e-6)
    assert report.num_steps == 18
    assert not (report.folder / "adapter" / "member0").exists()


def test_runs_of_a_method_share_the_time(given: dict[str, Any]) -> None:
    report = unlearn(settings_of("npo-ties", given, epochs=100_000, time_limit_s=1.5, checkpoint_epochs=100_000))
    assert "time limit" in report.reason
    steps = [line["step"] for line in events(report.folder, "step")]
    starts = [place for place, step in enumerate(steps) if step == 1]
    assert len(starts) == 2
    halves = starts[1], len(steps) - starts[1]
    assert min(halves) > 0.2 * max(halves)


def test_a_negated_adapter_is_what_the_checkpoint_subtracts(given: dict[str, Any]) -> None:
    before = model_of(run({**given, "out": given["out"].with_name("no"), "epochs": 1}, method="ga", learning_rate=1e-9))
    report = whole_run("task-vector", given)
    trained = newest_checkpoint(report.folder / "checkpoints")
    assert trained is not None
    after = model_of(report)
    layer = "model.layers.0.self_attn.q_proj"
    down, up = (trained.parameters[f"base_model.model.{layer}.lora_{x}.default.weight"] for x in "AB")
    expected = before[f"{layer}.weight"] - up @ down  # alpha = rank = 5
    assert torch.allclose(after[f"{layer}.weight"], expected, atol=1e-5)
    assert (report.kept.values["retain_loss"] or 0) > 0


def test_the_control_multiplies_its_term(given: dict[str, Any]) -> None:
    report = whole_run("pdu", given)
    lines = events(report.folder, "step")
    for line, before in zip(lines[1:], lines, strict=False):
        flattening, retained = line["terms"]["flattening"], line["terms"]["retain_nll"]
        factor = before["control"]["lambda"]
        assert line["loss"] == pytest.approx((flattening or 0.0) + factor * (retained or 0.0), rel=1e-5)
    # lambda stays for the first epoch of 3 steps, then follows 5 (NLL - 0.3).
    lambdas = [line["control"]["lambda"] for line in lines]
    assert lambdas[:3] == [100.0] * 3
    for line, now, before_ in zip(lines[3:], lambdas[3:], lambdas[2:], strict=False):
        retained = line["terms"]["retain_nll"]
        assert now == pytest.approx(before_ if retained is None else before_ + 5 * (retained - 0.3))


@pytest.mark.parametrize(
    ("needs", "message"),
    [
        (
            (Needs(kl="forward"), Needs(), Needs(kl="reverse")),
            r"one direction of the KL, got forward, reverse \(a, c\)",
        ),
        ((Needs(activations=0), Needs(activations=2)), r"the states of one layer, got 0, 2 \(a, b\)"),
        ((Needs(kl="forward"), Needs(activations=0), Needs(kl="forward", activations=0)), None),
    ],
)
def test_terms_cannot_need_two_of_what_a_batch_gives_one_of(needs: tuple[Needs, ...], message: str | None) -> None:
    terms = tuple(
        Term(n, "retain", 1.0, lambda v, _: v.log_probs, needs=need) for n, need in zip("abc", needs, strict=False)
    )
    if message is None:
        assert needs_of(terms) == Needs(kl="forward", activations=0)
        return
    with pytest.raises(ValueError, match=message):
        needs_of(terms)
