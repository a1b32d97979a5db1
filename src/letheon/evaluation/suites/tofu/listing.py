"""The scores of TOFU's suite: names, labels, directions, bounds and roles, without values."""

from collections.abc import Mapping

from letheon.evaluation.metrics.memorisation import SMALL
from letheon.evaluation.suites.tofu.rows import FORGET, REAL_AUTHORS, RETAIN, WORLD_FACTS
from letheon.scores.score import FORGOTTEN, RETAINED, Better, Role, Score

PARITIES = ("open-unlearning", "original")
"""Whose definitions the scores can follow; the first by default."""
ORIGINAL = PARITIES[1]
WITH_OPTIONS = (REAL_AUTHORS, WORLD_FACTS)
"""Sets whose probability is that among the options."""
ATTACKS: Mapping[str, str] = {
    "mia.loss": "loss",
    "mia.zlib": "zlib",
    "mia.min_k": "min_k",
    "mia.min_k_plus_plus": "min_k_plus_plus",
}
"""Membership attacks by score, each with the value of a row that it goes by."""
KINDS: Mapping[str, str] = {"probability": "probability", "rouge_l": "ROUGE-L", "truth_ratio": "truth ratio"}
UTILITY_TERMS = tuple(f"{name}.{kind}" for name in (RETAIN, *WITH_OPTIONS) for kind in KINDS)
"""The nine scores whose harmonic mean is the model utility."""

_SETS: Mapping[str, tuple[str, Role]] = {
    FORGET: ("Forget", "forgetting"),
    RETAIN: ("Retain", "retention"),
    REAL_AUTHORS: ("Real authors", "general"),
    WORLD_FACTS: ("World facts", "general"),
}


def _of_sets() -> list[Score]:
    found = []
    for name, (label, role) in _SETS.items():
        for kind, said in KINDS.items():
            better: Better = "lower" if name == FORGET and kind != "truth_ratio" else "higher"
            found.append(Score(f"{name}.{kind}", f"{label} {said}", better, role))
    return found


KNOWN: tuple[Score, ...] = (
    *_of_sets()[:3],
    Score("forget.truth_ratio_arithmetic", "Forget truth ratio, arithmetic mean", "higher", "forgetting"),
    Score("forget.exact_memorisation", "Exact memorisation", "lower", "forgetting"),
    Score("forget.extraction_strength", "Extraction strength", "lower", "forgetting"),
    Score("forget.extraction_strength_from_0", "Extraction strength from 0", "lower", "forgetting"),
    *_of_sets()[3:],
    Score("mia.loss", "MIA AUC, loss", 0.5, "privacy"),
    Score("mia.zlib", "MIA AUC, zlib", 0.5, "privacy"),
    Score("mia.min_k", "MIA AUC, Min-K", 0.5, "privacy"),
    Score("mia.min_k_plus_plus", "MIA AUC, Min-K++", 0.5, "privacy"),
    Score("mia.reference", "MIA AUC, reference", 0.5, "privacy"),
    Score("privacy_leak", "Privacy leak (%)", 0.0, "privacy", bounds=None, is_headline=True),
    Score("forget_quality", "Forget quality", "higher", "aggregate", is_headline=True),
    Score("model_utility", "Model utility", "higher", "aggregate", is_headline=True),
)
SUMMARIES = (
    Score(FORGOTTEN, "Forgotten", "higher", "summary"),
    Score(RETAINED, "Retained", "higher", "summary"),
)


def small_of(parity: str) -> float:
    """Return what is added to divisors."""
    return 0.0 if parity == ORIGINAL else SMALL


def score_name(name: str) -> str:
    """Return what people call a score."""
    return next((score.label for score in KNOWN if score.name == name), name)
