"""Attacks in a whole audit: a model that never saw the rows is not accused, and one that hides them is found out."""

import pytest
import torch

from audited import World, new_world, shown
from letheon.auditing.run import audit
from letheon.scores.audits import AuditedAttack, AuditResults

pytestmark = pytest.mark.slow

NAMES = (
    "quantisation",
    "prompts",
    "sampling",
    "extraction",
    "two-checkpoints",
    "recognisability",
    "logit-lens",
    "linear-probe",
)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> AuditResults:
    """An audit of one model that never saw the rows, beside another."""
    torch.set_num_threads(1)
    world: World = new_world(tmp_path_factory.mktemp("world"))
    return audit(world.given("never", never=str(world.folder / "other-never"), attacks=NAMES, samples=16))


def named(results: AuditResults, name: str) -> AuditedAttack:
    return next(attack for attack in results.attacks if attack.name == name)


def test_all_are_run_and_none_accuses_a_model_that_never_saw_the_rows(results: AuditResults) -> None:
    assert len(results.attacks) == 11, results.left_out
    assert results.verdict in ("gone", "can't tell"), shown(results)
    for attack in results.attacks:
        shown_most = [one.recovery.low for one in attack.points if one.recovery] + [
            max(one.shift.low, -one.shift.high) for one in attack.separations
        ]
        assert not attack.counts or max(shown_most) < 0.1, attack.name


@pytest.mark.parametrize(
    "name", ["quantisation", "extraction-memorisation", "extraction-exposure", "recognisability", "linear-probe"]
)
def test_rows_that_are_known_to_be_hidden_are_found(results: AuditResults, name: str) -> None:
    assert named(results, name).works


def test_the_linear_probe_is_reported_and_does_not_count(results: AuditResults) -> None:
    attack = named(results, "linear-probe")
    assert not attack.counts
    assert all(point.recovery for point in attack.points)


def test_the_difference_of_two_checkpoints_gives_all_back_and_does_not_count(results: AuditResults) -> None:
    attack = named(results, "two-checkpoints")
    assert not attack.counts
    assert max(point.values["after"] for point in attack.points) > 0.8
