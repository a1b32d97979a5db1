"""The verdict by findings made by hand."""

from dataclasses import replace

import pytest

from letheon.auditing.attack import Separated
from letheon.auditing.findings import Tried, count_findings
from letheon.auditing.recovery import Interval
from letheon.auditing.registry import attacks
from letheon.auditing.verdict import Evidence, Finding, Thresholds, judge

NOTHING = Interval(0.0, -0.01, 0.01)
THRESHOLDS = Thresholds()


def finding(
    *effects: Interval, num_documents: int = 100, works: bool | None = True, is_two_sided: bool = False
) -> Finding:
    """What an attack on 100 rows comes to."""
    named = tuple((f"{number} steps", effect) for number, effect in enumerate(effects, 1))
    return Finding("relearning", "Relearning", 100, num_documents, named, is_two_sided=is_two_sided, works=works)


def evidence(*findings: Finding, num_documents: int = 100) -> Evidence:
    return Evidence(known=0.9, remaining=NOTHING, num_rows=100, num_documents=num_documents, findings=findings)


def test_gone_needs_every_interval_within_the_margin() -> None:
    assert judge(evidence(finding(NOTHING, NOTHING)), THRESHOLDS).word == "gone"
    wide = Interval(0.0, -0.2, 0.2)
    assert judge(evidence(finding(NOTHING, wide)), THRESHOLDS).word == "can't tell"
    assert judge(replace(evidence(finding(NOTHING)), remaining=wide), THRESHOLDS).word == "can't tell"


def test_an_attack_that_recovers_less_than_from_the_control_does_not_stand_against_gone() -> None:
    assert judge(evidence(finding(Interval(-0.2, -0.3, 0.01))), THRESHOLDS).word == "gone"


def test_too_few_documents_cannot_show_that_nothing_is_left() -> None:
    # 60 documents are the fewest for a margin of 0.05; with 100 rows of 40 documents these have 150 rows.
    few = finding(Interval(0.0, 0.0, 0.0), num_documents=40)
    found = judge(evidence(few), THRESHOLDS)
    assert (found.word, found.needed_rows) == ("can't tell", 150)
    assert "150 asked rows" in found.reason
    plainly = judge(evidence(finding(NOTHING), num_documents=40), THRESHOLDS)
    assert (plainly.word, plainly.needed_rows) == ("can't tell", 150)
    assert "what is given without an attack would need about 150" in plainly.reason


@pytest.mark.parametrize(("num_documents", "word"), [(3, "can't tell"), (4, "hidden")])
def test_an_interval_over_too_few_documents_shows_nothing(num_documents: int, word: str) -> None:
    # Of one document every draw is the same, so that the interval has no width.
    back = finding(Interval(0.5, 0.5, 0.5), num_documents=num_documents)
    assert judge(evidence(back, num_documents=num_documents), THRESHOLDS).word == word


@pytest.mark.parametrize("left", [0.3, 0.9])
@pytest.mark.parametrize(("num_documents", "word"), [(3, "can't tell"), (4, "not forgotten")])
def test_what_is_left_of_too_few_documents_shows_nothing(num_documents: int, word: str, left: float) -> None:
    few = replace(evidence(finding(NOTHING), num_documents=num_documents), remaining=Interval(left, left, left))
    assert judge(few, THRESHOLDS).word == word
    assert judge(replace(few, leaked_plainly=1), THRESHOLDS).word == "not forgotten"


def test_hidden_names_the_strongest_attack_and_the_least_strength_that_shows_as_much() -> None:
    low, high = Interval(0.2, 0.1, 0.3), Interval(0.8, 0.7, 0.9)
    found = judge(evidence(finding(NOTHING, low, high, high)), THRESHOLDS)
    assert (found.word, found.attack) == ("hidden", "relearning")
    assert found.reason == "Relearning brings back 80% of what was forgotten at 3 steps (0.70 to 0.90)"


@pytest.mark.parametrize(("low", "high", "way"), [(-0.4, -0.2, "dearer"), (0.2, 0.4, "cheaper")])
def test_both_sides_of_membership_count(low: float, high: float, way: str) -> None:
    shift = Interval((low + high) / 2, low, high)
    found = judge(evidence(finding(shift, is_two_sided=True)), THRESHOLDS)
    assert found.word == "hidden"
    assert way in found.reason


def test_not_forgotten_comes_before_any_attack() -> None:
    left = replace(evidence(finding(Interval(0.9, 0.8, 1.0))), remaining=Interval(0.8, 0.7, 0.9))
    found = judge(left, THRESHOLDS)
    assert (found.word, found.attack) == ("not forgotten", None)


def test_a_little_that_is_left_is_not_forgotten_unless_an_attack_brings_back_more() -> None:
    left = replace(evidence(finding(NOTHING)), remaining=Interval(0.2, 0.1, 0.3))
    assert judge(left, THRESHOLDS).word == "not forgotten"
    attacked = replace(left, findings=(finding(Interval(0.6, 0.4, 0.8)),))
    found = judge(attacked, THRESHOLDS)
    assert found.word == "hidden"
    assert "without an attack the model still gives 20%" in found.reason


def test_one_leaked_row_is_enough() -> None:
    found = judge(replace(evidence(finding(NOTHING)), leaked_plainly=1), THRESHOLDS)
    assert (found.word, "1 row of 100" in found.reason) == ("not forgotten", True)
    found = judge(replace(evidence(finding(NOTHING)), leaked=(("sampling", "Sampling", 2),)), THRESHOLDS)
    assert (found.word, found.attack) == ("hidden", "sampling")


def test_attacks_that_are_too_weak_or_do_not_count_say_nothing() -> None:
    weak = finding(Interval(0.9, 0.8, 1.0), works=False)
    aside = replace(weak, works=True, counts=False)
    found = judge(evidence(weak, aside), THRESHOLDS)
    assert (found.word, found.attack) == ("can't tell", None)
    assert judge(evidence(weak, aside, finding(NOTHING)), THRESHOLDS).word == "gone"


def test_rows_that_were_never_known_are_said_to_be() -> None:
    found = judge(replace(evidence(finding(NOTHING)), known=0.02), THRESHOLDS)
    assert found.word == "can't tell"
    assert "nothing to forget" in found.reason


def test_nothing_is_gone_by_attacks_that_were_not_shown_to_work() -> None:
    untried = finding(NOTHING, works=None)
    assert judge(evidence(untried), THRESHOLDS).word == "can't tell"
    assert judge(evidence(untried, finding(NOTHING)), THRESHOLDS).word == "gone"
    # What comes back came back, whether or not it was tried elsewhere.
    assert judge(evidence(finding(Interval(0.9, 0.8, 1.0), works=None)), THRESHOLDS).word == "hidden"


def test_the_level_is_corrected_for_each_attack_and_each_score_of_membership() -> None:
    membership, recognisability, prompts, two = (
        attacks()[name] for name in ("membership", "recognisability", "prompts", "two-checkpoints")
    )
    scores = dict.fromkeys(("loss", "zlib", "min-k", "min-k++", "ratio"), Separated((), ()))
    tried = [
        Tried(membership, separated={"after": scores}),
        Tried(recognisability, separated={"after": {"profile": Separated((), ())}}),
        Tried(prompts, knowledge={}),
        Tried(two, knowledge={}),
    ]
    # What is given without an attack, five scores, one classifier, one curve; what never counts is not corrected for.
    assert count_findings(tried) == 1 + 5 + 1 + 1
