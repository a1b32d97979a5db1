"""Attacks in the verdict: those that say the same stand together, and a variant that is not preferred says nothing."""

from dataclasses import replace

from letheon.evaluation.sound import sound_variants
from letheon.report.verdict import verdict
from letheon.scores.results import PlainResults
from letheon.scores.score import Score, Scores

LOSS = Score("mia.loss", "MIA AUC, loss", 0.5, "privacy", 0.52)
ZLIB = Score("mia.zlib", "MIA AUC, zlib", 0.5, "privacy", 0.48)
MIN_K = Score("mia.min_k", "MIA AUC, Min-K", 0.5, "privacy", 0.9)
FORGET = Score("forget.probability", "Forget probability", "lower", "forgetting", 0.02)
RETAIN = Score("retain.probability", "Retain probability", "higher", "retention", 0.9)


def said(*attacks: Score) -> str:
    before, after = (Scores((replace(FORGET, value=value), RETAIN, *attacks)) for value in (0.9, 0.02))
    return verdict(PlainResults("tofu", "m", before), PlainResults("tofu", "m", after)).sentence


def test_attacks_that_say_the_same_stand_together() -> None:
    sentence = said(LOSS, MIN_K, ZLIB)
    assert "2 membership attacks cannot tell what it was trained on (MIA AUC, loss 0.520, MIA AUC, zlib 0.480)" in (
        sentence
    )
    assert "; a membership attack can tell what it was trained on (MIA AUC, Min-K 0.900)" in sentence


def test_variants_beside_the_scores_of_the_suite_are_left_out() -> None:
    assert said(LOSS, *sound_variants([LOSS], {"mia.loss": 0.95})) == said(LOSS)
