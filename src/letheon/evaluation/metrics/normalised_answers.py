"""Answers compared without case, punctuation and articles (Rajpurkar et al. 2016); pure functions of texts."""

import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised_words(text: str) -> list[str]:
    """Return the words of a text in lower case, without ASCII punctuation and without "a", "an" and "the"."""
    return _ARTICLES.sub(" ", text.lower().translate(_WITHOUT_PUNCTUATION)).split()


def matches_any(said: str, answers: Sequence[str]) -> bool:
    """Return whether `said` has the same normalised words as one of `answers`, in the same order; False without any."""
    return any(normalised_words(said) == normalised_words(answer) for answer in answers)


def word_f1(said: str, answers: Sequence[str]) -> float:
    """Return the best F1 of the normalised words of `said` against one of `answers`, 0 to 1; 0 without any.

    F1 is the harmonic mean of precision and recall, words counted as often as they come. Where one of the two texts
    has no words it is 1 if the other has none either, else 0.
    """
    return max((_f1(normalised_words(said), normalised_words(answer)) for answer in answers), default=0.0)


def _f1(said: Sequence[str], wanted: Sequence[str]) -> float:
    if not said or not wanted:
        return float(said == wanted)
    return 2 * (Counter(said) & Counter(wanted)).total() / (len(said) + len(wanted))
