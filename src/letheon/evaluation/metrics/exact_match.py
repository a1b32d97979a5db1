"""Whether a question is answered: exact match, as the official script computes it, and up to the form of writing."""

import unicodedata

from letheon.evaluation.readback import as_read_back


def exact_match(generation: str, answer: str) -> float:
    """Return 1.0 if `generation` and `answer` are equal after strip and lower, else 0.0; punctuation counts.

    Both go through the official "nan" rule before they are stripped.
    """
    return float(_official_key(generation) == _official_key(answer))


def unicode_exact_match(generation: str, answer: str) -> float:
    """Return 1.0 if `generation` and `answer` are equal after strip, NFKC and case folding, else 0.0.

    So a letter with its accent equals the letter followed by it, and a full-width digit the digit. What matches
    officially matches here; punctuation counts, and so do marks that are written or left out (Arabic vowels).
    """
    return float(_unicode_key(generation) == _unicode_key(answer))


def _official_key(text: str) -> str:
    return as_read_back(text).strip().lower()


def _unicode_key(text: str) -> str:
    folded = unicodedata.normalize("NFKC", _official_key(text)).casefold()
    return unicodedata.normalize("NFKC", folded).strip()
