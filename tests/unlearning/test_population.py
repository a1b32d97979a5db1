"""Populations: runs over one frozen model are what their runs are alone."""

import json
import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from letheon.data.rows import Row
from letheon.engine.paths import build_engine
from letheon.engine.segments import segmented_linear, segments_of
from letheon.errors import SettingsError
from letheon.objective.catalogue import get_method
from letheon.settings import UnlearnSettings
from letheon.training.tracking import Silent
from letheon.unlearning import prepare
from letheon.unlearning.planning import Machine, plan_run
from letheon.unlearning.planning.estimate import OVERHEAD, WORKSPACE, Place
from letheon.unlearning.populations import DivergedRun, cohorts, groups_of, run_population, why_alone
from letheon.unlearning.populations.loop import train_together
from letheon.unlearning.populations.sizes import cohorts_of, num_at_once
from letheon.unlearning.populations.step import MOST_TOKENS
from letheon.unlearning.reading import read
from letheon.unlearning.record import RunReport
from letheon.unlearning.run import unlearn
from running import After, events, knowing_model, short_run

TOLERANCE = 3e-5
"""Relative to the largest value: float32 carries 6e-8, and a few dozen steps add to it."""

MIXED: tuple[dict[str, Any], ...] = (
    {"rank": 1, "alpha": 2.0, "seed": 1},
    {"rank": 2, "npo": "sequence", "beta": 0.1, "seed": 2, "learning_rate": 5e-3},
    {"rank": 3, "npo": "batch", "gamma": 0.0, "seed": 3, "batch_size": 3},
    {"rank": 4, "npo": "logits", "delta": 0.0, "seed": 1, "rslora": True, "warm_up": 1.5},
    {"rank": 5, "kl": "gold", "delta": 1.0, "seed": 4, "learning_rate_schedule": "linear"},
    {"rank": 6, "method": "npo", "seed": 5, "max_gradient_norm": 0.5, "lora_init": "kaiming"},
    {"rank": 7, "method": "pdu", "seed": 6, "epochs": 2, "schedule": "paired"},
    {"rank": 8, "method": "simnpo", "seed": 7, "max_batch_tokens": 24, "optimiser": "adam", "weight_decay": 0.01},
)
"""Eight runs that differ in all that runs may differ in."""


@pytest.fixture
def given(tmp_path: Path, rows: list[Row], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Settings of a short run of a model that knows its rows."""
    return short_run(tmp_path, rows, knowing_model(tokenizer, rows), tokenizer)


def population_of(given: Mapping[str, Any], *changes: Mapping[str, Any], to: str = "pop") -> list[UnlearnSettings]:
    """Settings of runs, each with a folder of its own."""
    folder = Path(given["out"]).parent
    return [UnlearnSettings.of({**given, "out": folder / f"{to}{n}", **c}) for n, c in enumerate(changes)]


def adapter_of(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def difference(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """The largest difference of two adapters, relative to the largest value of the second."""
    assert found.keys() == expected.keys()
    largest = max(float(value.abs().max()) for value in expected.values())
    return max(float((found[name] - value).abs().max()) for name, value in expected.items()) / largest


def naive(states: Tensor, weight: Tensor, downs: list[Tensor], ups: list[Tensor], factors: list[float]) -> list[Tensor]:
    return [x @ (weight + s * b @ a).T for x, a, b, s in zip(states.split([3, 0, 5]), downs, ups, factors, strict=True)]


@pytest.mark.parametrize("pads", [False, True])
def test_segments_meet_their_own_matrices(pads: bool) -> None:
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    states, weight, bias = drawn(8, 4), drawn(6, 4).detach(), drawn(6).detach()
    downs, ups, factors = [drawn(r, 4) for r in (1, 2, 3)], [drawn(6, r) for r in (1, 2, 3)], [0.5, 1.0, 2.0]
    segments = segments_of([3, 0, 5], device=states.device, pads=pads)
    found = segmented_linear(states[None], weight, bias, downs=downs, ups=ups, scalings=factors, segments=segments)
    expected = torch.cat(naive(states, weight, downs, ups, factors)) + bias
    torch.testing.assert_close(found[0], expected, rtol=1e-12, atol=1e-12)
    direction = torch.randn(8, 6, generator=generator, dtype=torch.float64)
    inputs = [states, *downs, *ups]
    of_found = torch.autograd.grad((found[0] * direction).sum(), inputs)
    of_expected = torch.autograd.grad((expected * direction).sum(), inputs)
    torch.testing.assert_close(of_found, of_expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("pads", [False, True])
def test_a_segment_that_is_not_finite_leaves_the_others_alone(pads: bool) -> None:
    states = torch.ones(4, 2)
    states[:2] = torch.nan
    states.requires_grad_()
    downs = [torch.full((1, 2), torch.inf, requires_grad=True), torch.ones(2, 2, requires_grad=True)]
    ups = [torch.full((3, 1), torch.nan, requires_grad=True), torch.ones(3, 2, requires_grad=True)]
    segments = segments_of([2, 2], device=states.device, pads=pads)
    output = segmented_linear(
        states, torch.ones(3, 2), None, downs=downs, ups=ups, scalings=[1.0, 1.0], segments=segments
    )
    # Each row: 1 + 1 through W; A x = (2, 2), B A x = 4.
    assert output[2:].tolist() == [[6.0] * 3] * 2
    output.sum().backward()
    assert states.grad is not None
    # W: 3; B then A: 3 a rank, 2 ranks.
    assert states.grad[2:].tolist() == [[9.0, 9.0]] * 2
    assert downs[1].grad is not None
    assert downs[1].grad.tolist() == [[6.0, 6.0]] * 2


def test_bfloat16_states_meet_float32_matrices() -> None:
    generator = torch.Generator().manual_seed(0)
    states, weight = (
        torch.randn(6, 8, generator=generator).bfloat16(),
        torch.randn(4, 8, generator=generator).bfloat16(),
    )
    downs, ups = [torch.randn(2, 8, generator=generator)] * 2, [torch.randn(4, 2, generator=generator)] * 2
    found = [
        segmented_linear(
            states, weight, None, downs=downs, ups=ups, scalings=[1.0, 1.0],
            segments=segments_of([2, 4], device=states.device, pads=pads),
        )
        for pads in (False, True)
    ]  # fmt: skip
    assert found[0].dtype == torch.bfloat16
    torch.testing.assert_close(found[0], found[1], rtol=2**-7, atol=0)


@pytest.mark.slow
def test_eight_mixed_runs_are_what_they_are_alone(given: dict[str, Any]) -> None:
    together = run_population(population_of(given, *MIXED))
    for number, (alone, found) in enumerate(zip(population_of(given, *MIXED, to="alone"), together, strict=True)):
        expected = unlearn(alone)
        assert isinstance(found, RunReport)
        steps, expected_steps = events(found.folder, "step"), events(expected.folder, "step")
        assert [step["num_tokens"] for step in steps] == [step["num_tokens"] for step in expected_steps]
        for step, other in zip(steps, expected_steps, strict=True):
            for name in ("loss", "gradient_norm", "learning_rate"):
                assert step[name] == pytest.approx(other[name], rel=1e-4, abs=1e-6), (number, step["step"], name)
        assert difference(adapter_of(found.folder), adapter_of(expected.folder)) < TOLERANCE, number
        assert found.kept.epoch == expected.kept.epoch
        assert found.kept.score == pytest.approx(expected.kept.score, rel=1e-3)
        first, second = (
            json.loads((r.folder / "adapter" / "adapter_config.json").read_text()) for r in (found, expected)
        )
        assert first == second
        merged, other = (load_file(r.model / "model.safetensors") for r in (found, expected))
        assert difference(merged, other) < TOLERANCE


@pytest.mark.slow
def test_runs_find_their_own_learning_rates_and_ends_as_they_do_alone(given: dict[str, Any]) -> None:
    free = {name: value for name, value in given.items() if name not in ("epochs", "learning_rate")}
    seeds = [{"seed": 1}, {"seed": 2, "epochs": 5}, {"seed": 3}]
    together = run_population(population_of(free, *seeds))
    for alone, found in zip(population_of(free, *seeds, to="alone"), together, strict=True):
        expected = unlearn(alone)
        assert isinstance(found, RunReport)
        assert (found.reason.split(":")[0], found.num_steps) == (expected.reason.split(":")[0], expected.num_steps)
        runs = [yaml.safe_load((one.folder / "run.yaml").read_text()) for one in (found, expected)]
        assert runs[0]["epochs"] == runs[1]["epochs"]
        rates = [[step["learning_rate"] for step in events(one.folder, "step")] for one in (found, expected)]
        assert rates[0] == pytest.approx(rates[1])


@pytest.mark.slow
def test_runs_take_the_kl_of_all_places_as_they_do_alone(given: dict[str, Any]) -> None:
    shared = {"gamma": 0.0, "positions": "all", "max_length": 48, "overlong": "truncate", "validation": 0.34}
    shared |= {"patience": 9, "patience_on": "retain_kl", "schedule": "alternating", "checkpoint_steps": 2, "seed": 3}
    changes = ({**shared, "rank": 2}, {**shared, "rank": 3, "learning_rate": 5e-3})
    together = population_of(given, *changes)
    run_population(together)
    for one, alone in zip(together, population_of(given, *changes, to="alone"), strict=True):
        unlearn(alone)
        assert difference(adapter_of(one.out), adapter_of(alone.out)) < TOLERANCE
        found, expected = ([e["retain_kl"] for e in events(s.out, "interim")] for s in (one, alone))
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-6)
        assert max(found) > 0


@pytest.mark.slow
def test_passes_of_few_runs_add_up_to_the_same(given: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    changes: list[dict[str, Any]] = [{"seed": seed, "rank": 1 + seed, "epochs": 1} for seed in range(4)]
    whole = run_population(population_of(given, *changes, to="whole"))
    monkeypatch.setitem(MOST_TOKENS, "cpu", 60)
    for found, expected in zip(run_population(population_of(given, *changes)), whole, strict=True):
        assert difference(adapter_of(found.folder), adapter_of(expected.folder)) < TOLERANCE


def test_runs_whose_packs_are_filled_up_are_what_they_are_alone(
    given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: list[dict[str, Any]] = [{"seed": seed, "rank": 1 + seed, "epochs": 1} for seed in range(3)]
    plain = run_population(population_of(given, *changes, to="plain"))
    monkeypatch.setattr("letheon.engine.engine.is_compiled_by_size", lambda _: True)
    for found, expected in zip(run_population(population_of(given, *changes)), plain, strict=True):
        assert difference(adapter_of(found.folder), adapter_of(expected.folder)) < TOLERANCE


def test_a_run_of_a_population_leaves_the_files_of_a_run(given: dict[str, Any]) -> None:
    reports = run_population(population_of(given, {"seed": 1}, {"seed": 2, "rank": 2}))
    expected = unlearn(population_of(given, {"seed": 1}, to="alone")[0])

    def files(folder: Path) -> set[str]:
        return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}

    assert files(reports[0].folder) == files(expected.folder)
    provenance = json.loads((reports[1].folder / "provenance.json").read_text())
    assert provenance["population"] == {"member": 1, "folders": [str(report.folder) for report in reports]}
    for name in ("model", "forget", "retain", "form", "engine"):
        assert provenance[name] == expected.provenance[name]
    assert provenance.keys() ^ expected.provenance.keys() == {"population"}
    assert provenance["seed"] == 2


@pytest.mark.slow
def test_one_that_diverges_leaves_the_others_alone(given: dict[str, Any]) -> None:
    changes: list[dict[str, Any]] = [{"seed": 1}, {"seed": 2, "learning_rate": 1e30, "rank": 3}, {"seed": 3}]
    first, diverged, last = run_population(population_of(given, *changes))
    calm = run_population(population_of(given, changes[0], changes[2], to="calm"))
    assert isinstance(diverged, DivergedRun)
    assert "became NaN or infinite; rows in that step" in diverged.reason
    assert diverged.exit_code == 0
    assert (diverged.folder / "run.yaml").exists()
    assert not (diverged.folder / "model").exists()
    assert events(diverged.folder, "note")[-1]["message"] == diverged.reason
    for found, expected in zip((first, last), calm, strict=True):
        assert difference(adapter_of(found.folder), adapter_of(expected.folder)) < TOLERANCE


@pytest.mark.slow
def test_runs_of_different_length_end_by_themselves(given: dict[str, Any]) -> None:
    changes: tuple[dict[str, Any], ...] = ({"epochs": 1}, {"epochs": 3, "max_steps": 5}, {"epochs": 3, "patience": 1})
    reports = run_population(population_of(given, *changes))
    alone = [unlearn(one) for one in population_of(given, *changes, to="alone")]
    assert [report.num_steps for report in reports if isinstance(report, RunReport)] == [r.num_steps for r in alone]
    assert [report.reason for report in reports] == [report.reason for report in alone]


@pytest.mark.slow
def test_a_population_that_was_stopped_goes_on(given: dict[str, Any]) -> None:
    changes: tuple[dict[str, Any], ...] = ({"seed": 1}, {"seed": 2, "rank": 2, "epochs": 4})
    whole = run_population(population_of(given, *changes, to="whole"))
    halt = After(4, lambda: signal.raise_signal(signal.SIGTERM))
    stopped = run_population(population_of(given, *changes), observer=halt)
    assert {report.reason for report in stopped} == {"signal 15"}
    assert {report.exit_code for report in stopped} == {143}
    resumed = run_population([one.model_copy(update={"resume": True}) for one in population_of(given, *changes)])
    for found, expected in zip(resumed, whole, strict=True):
        assert isinstance(found, RunReport)
        assert isinstance(expected, RunReport)
        assert difference(adapter_of(found.folder), adapter_of(expected.folder)) == 0
        assert found.num_steps == expected.num_steps
        assert "resumed after step 4" in {note["message"] for note in events(found.folder, "note")}


@pytest.mark.slow
def test_a_run_goes_on_alone_and_in_a_population(given: dict[str, Any]) -> None:
    changes: tuple[dict[str, Any], ...] = ({"seed": 1}, {"seed": 2, "rank": 2})
    whole = [unlearn(one) for one in population_of(given, *changes, to="whole")]
    run_population(population_of(given, *changes), observer=After(4, lambda: signal.raise_signal(signal.SIGTERM)))
    alone = unlearn(population_of(given, {**changes[0], "resume": True})[0])
    assert difference(adapter_of(alone.folder), adapter_of(whole[0].folder)) < TOLERANCE
    unlearn(
        population_of(given, *changes, to="other")[1], observer=After(3, lambda: signal.raise_signal(signal.SIGTERM))
    )
    resumed = population_of(given, {"seed": 5}, {**changes[1], "resume": True}, to="other")
    assert difference(adapter_of(run_population(resumed)[1].folder), adapter_of(whole[1].folder)) < TOLERANCE


def settings_of(**given: Any) -> UnlearnSettings:
    return UnlearnSettings.of({"model": "m", "forget": "f.jsonl", "retain": "r.jsonl", "out": "o", **given})


def test_groups_hold_what_can_share_a_model() -> None:
    settings = [
        settings_of(seed=1),
        settings_of(model="other"),
        settings_of(method="npo", rank=8, learning_rate=1e-5, epochs=3, general="auto", instead="refusal"),
        settings_of(kl="reverse"),
        settings_of(adapt="weights"),
        settings_of(target_modules=["o_proj"]),
        settings_of(kl="reverse", seed=4),
        settings_of(adapt="weights"),
        settings_of(method="ga", adapt="lora"),
        settings_of(instead="none"),
        settings_of(instead="auto"),
        settings_of(method="idk-dpo"),
    ]
    assert groups_of(settings) == [[0, 2, 8], [1], [3, 6], [4], [5], [7], [9], [10], [11]]
    assert groups_of([]) == []


def test_a_random_split_is_shared_by_one_seed() -> None:
    seeds = (1, 2, 1)
    assert groups_of(
        [settings_of(seed=seed, validation=0.2, learning_rate=1e-3, rank=n + 1) for n, seed in enumerate(seeds)]
    ) == [
        [0, 2],
        [1],
    ]
    assert groups_of([settings_of(seed=seed) for seed in seeds]) == [[0, 1, 2]]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"adapt": "weights"}, "weights themselves"),
        ({"dora": True}, "--dora"),
        ({"lora_dropout": 0.1}, "--lora-dropout"),
        ({"time_limit_s": 60}, "time limit"),
        ({"method": "idk-dpo"}, "answers that are its own"),
        ({"method": "rmu", "adapt": "lora"}, "hidden states"),
        ({"method": "task-vector"}, "after training"),
        ({"method": "npo-ties"}, "after training"),
    ],
)
def test_what_goes_alone_says_why(changes: dict[str, Any], reason: str) -> None:
    assert reason in (why_alone(settings_of(**changes)) or "")
    assert why_alone(settings_of()) is None


@pytest.mark.parametrize(("num", "at_once", "expected"), [(7, 3, [2, 2, 3]), (4, 4, [4]), (5, 1, [1] * 5), (3, 9, [3])])
def test_cohorts_are_few_and_of_about_one_size(num: int, at_once: int, expected: list[int]) -> None:
    cohorts = cohorts_of(num, at_once)
    assert [len(cohort) for cohort in cohorts] == expected
    assert [m for cohort in cohorts for m in cohort] == list(range(num))


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.slow
def test_as_many_go_together_as_memory_holds(
    at_once: bool, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("letheon.unlearning.planning.check.SMALL", 1e9)
    settings, inputs = read(population_of(given, {"rank": 3})[0], get_method("low-rank-npo"))
    plan = plan_run(settings, inputs, machine=Machine("cpu", None))
    places: tuple[Place, ...] = ("device", "host")
    shared: float = plan.during("always", places) - 12 * plan.num_trained
    of_step = plan.during("step", places)
    if at_once:
        monkeypatch.delitem(MOST_TOKENS, "cpu")
        of_run = 16 * plan.num_trained + of_step
    else:
        shared += of_step * 1024 / plan.demand.largest.num_tokens
        of_run = 16 * plan.num_trained

    def found(num_runs: int, memory: int | None) -> int:
        resumed = [settings.model_copy(update={"rank": 1 + m % 3}) for m in range(num_runs)]
        return num_at_once(resumed, inputs, machine=Machine("cpu", memory))

    needed = round((WORKSPACE["cpu"] + shared + 5.5 * of_run) * (1 + OVERHEAD))  # half a run for rounding
    assert found(8, needed) == 5
    assert found(3, needed) == 3
    assert found(3, 1) == 1
    assert found(3, None) == 3


def test_what_cannot_share_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="got 2 groups of them"):
        run_population(population_of(given, {}, {"layers": "0:1"}))
    with pytest.raises(SettingsError, match="weights themselves"):
        run_population(population_of(given, {}, {"adapt": "weights"}))
    with pytest.raises(SettingsError, match=r"got .*twice"):
        run_population([*population_of(given, {}), *population_of(given, {"seed": 2})])
    assert not list(Path(given["out"]).parent.glob("pop*"))


class Notes(Silent):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


def test_a_model_that_cannot_be_packed_trains_its_runs_in_turn(
    given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    build, notes = build_engine, Notes()
    monkeypatch.setattr(prepare, "build_engine", lambda *a, **k: replace(build(*a, **k), path="padded", selection=None))
    reports = run_population(population_of(given, {"epochs": 1}, {"epochs": 1, "seed": 2}), observer=notes)
    assert any("needs padded sequences" in note for note in notes.notes)
    assert [report.reason for report in reports] == ["finished"] * 2
    assert all("population" not in report.provenance for report in reports if isinstance(report, RunReport))


@pytest.mark.slow
def test_runs_that_do_not_fit_go_on_in_halves(given: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    train, sizes, notes = train_together, list[int](), Notes()

    def tight(population: Any, runs: Any, **kwargs: Any) -> Any:
        sizes.append(len(runs))
        if len(runs) > 2:
            raise torch.OutOfMemoryError
        return train(population, runs, **kwargs)

    changes = tuple({"seed": seed, "epochs": 1} for seed in range(3))
    expected = run_population(population_of(given, *changes, to="whole"))
    monkeypatch.setattr(cohorts, "train_together", tight)
    found = run_population(population_of(given, *changes), observer=notes)
    assert sizes == [3, 1, 2]
    assert any("do not fit" in note for note in notes.notes)
    for one, other in zip(found, expected, strict=True):
        assert difference(adapter_of(one.folder), adapter_of(other.folder)) < TOLERANCE
        assert len(events(one.folder, "start")) == 1


def test_observers_hear_of_their_run_and_of_all(given: dict[str, Any]) -> None:
    class Steps(Notes):
        def __init__(self) -> None:
            super().__init__()
            self.steps: list[tuple[int, int]] = []

        def step(self, done: int, total: int, values: Mapping[str, float | None]) -> None:
            self.steps.append((done, total))

    whole, each = Steps(), [Steps(), Steps()]
    run_population(population_of(given, {"epochs": 1}, {"epochs": 2}), observer=whole, observers=each)
    assert each[0].steps == [(1, 3), (2, 3), (3, 3)]
    assert each[1].steps == [(n, 6) for n in range(1, 7)]
    assert whole.steps == [(2, 9), (4, 9), (6, 9), (7, 9), (8, 9), (9, 9)]
    named = Notes()
    run_population(population_of(given, {"epochs": 1}, {"epochs": 1}, to="named"), observer=named)
    assert any(note.startswith("named1: epoch 1: ") for note in named.notes)


def test_each_run_has_its_own_tracker(given: dict[str, Any]) -> None:
    changes: list[dict[str, Any]] = [{"epochs": 1, "trackers": "tensorboard", "seed": seed} for seed in (1, 2)]
    for report in run_population(population_of(given, *changes)):
        assert list((report.folder / "tensorboard").rglob("events.out.tfevents.*"))
