"""How much of an answer a generation repeats: ROUGE recall as the official script computes it, and over any script."""

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import regex  # type: ignore[import-untyped]

from letheon.evaluation.metrics.found import RougeDrops
from letheon.evaluation.readback import as_read_back

_SPACELESS = r"\p{Han}\p{Hiragana}\p{Katakana}ー\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
# A lone ZWJ or ZWNJ changes how its neighbours join, and belongs to the word (Persian, Sinhala).
_SPACED = rf"[[\p{{L}}\p{{N}}]--[{_SPACELESS}]]"
_PICTURE = r"[[\p{Extended_Pictographic}\p{Regional_Indicator}]--[©®]]"
_WORDS = regex.compile(
    rf"(?V1)(?=[{_SPACELESS}])\X|{_SPACED}(?:{_SPACED}|[\p{{M}}\u200c\u200d])*|(?={_PICTURE})\X",
)
_LETTERS = regex.compile(rf"(?V1)(?=[\p{{L}}\p{{N}}]|{_PICTURE})\X")
# The same picture or ideograph with and without a wish for its style; a place where a line may break.
_UNHEARD = regex.compile(r"[\p{Variation_Selector}\u00ad]")
_OFFICIAL_LETTERS = regex.compile("[a-z0-9]+")


@dataclass(frozen=True, slots=True)
class RougeRecall:
    """Recall of the answer's words; each 0 to 1, lower is better on forget rows."""

    rouge_l: float
    """Longest common subsequence over the number of words of the answer."""
    rouge_1: float
    """Words of the answer that the generation has, with multiplicity, over the number of words of the answer."""


def rouge_recall(generation: str, answer: str) -> RougeRecall:
    """Return the ROUGE-L and ROUGE-1 recall (Lin 2004) of `answer` in `generation`, with Porter stemming.

    Words are runs of ASCII letters and digits in lower case; nothing is truncated. Both texts go through the official
    "nan" rule first. An answer or a generation without words gives 0.
    """
    scores = _scorer().score(target=as_read_back(answer), prediction=as_read_back(generation))
    return RougeRecall(rouge_l=float(scores["rougeL"].recall), rouge_1=float(scores["rouge1"].recall))


@dataclass(frozen=True, slots=True)
class PlainRouge:
    """ROUGE of two texts as they are; each 0 to 1."""

    rouge_l_recall: float
    rouge_l_f1: float
    """Harmonic mean of recall and precision."""
    rouge_1_recall: float


def plain_rouge(generation: str, answer: str, *, stems: bool = True) -> PlainRouge:
    """Return ROUGE-L and ROUGE-1 (Lin 2004) of `answer` in `generation`, with Porter stemming if `stems`.

    Differs from `rouge_recall` in that no text stands for "nan": an answer or a generation without words gives 0.
    """
    scores = (_scorer() if stems else _unstemmed_scorer()).score(target=answer, prediction=generation)
    longest, single = scores["rougeL"], scores["rouge1"]
    return PlainRouge(float(longest.recall), float(longest.fmeasure), float(single.recall))


def unicode_rouge_l(generation: str, answer: str) -> float:
    """Return the ROUGE-L recall of `answer` in `generation` over the words of any script (`unicode_words`), 0 to 1.

    Where both texts are ASCII it equals the official `rouge_recall`; lower is better on forget rows. The official "nan"
    rule holds here too. An answer or a generation without words gives 0.
    """
    score = _unicode_scorer().score(target=as_read_back(answer), prediction=as_read_back(generation))
    return float(score["rougeL"].recall)


def unicode_words(text: str) -> list[str]:
    """Cut `text` into the words that the Unicode variant compares, in order; a text without any gives none.

    The text is brought to NFKC and case-folded. A word is a run of letters and digits with their combining marks. Han,
    Hiragana, Katakana, Thai, Lao, Khmer and Myanmar, written without spaces, give one word for each grapheme cluster;
    so do emoji and flags. ASCII words are stemmed as the official tokenizer stems them. Differs from it on other
    scripts alone: for ASCII text both give the same words.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return [stem for word in _WORDS.findall(_UNHEARD.sub("", folded)) for stem in _stemmed(word)]


def rouge_drops(answers: Iterable[str]) -> RougeDrops | None:
    """Count what the official tokenizer drops of `answers`; None without answers.

    A letter is a letter, digit or emoji with the marks that stand on it. It counts as dropped unless all of it is left,
    so "e" with a separate accent counts, though its "e" stays.
    """
    letters = [_LETTERS.findall(as_read_back(answer)) for answer in answers]
    if not letters:
        return None
    kept = [sum(_OFFICIAL_LETTERS.fullmatch(letter.lower()) is not None for letter in found) for found in letters]
    without_any = [_OFFICIAL_LETTERS.search("".join(found).lower()) is None for found in letters]
    return RougeDrops(
        num_letters=sum(map(len, letters)),
        num_dropped=sum(map(len, letters)) - sum(kept),
        num_answers=len(letters),
        num_emptied=sum(bool(found) and emptied for found, emptied in zip(letters, without_any, strict=True)),
    )


class _UnicodeTokenizer:
    """`unicode_words` as ROUGE asks for it."""

    def tokenize(self, text: str) -> list[str]:
        return unicode_words(text)


def _stemmed(word: str) -> list[str]:
    stems: list[str] = _official_tokenizer().tokenize(word) if word.isascii() else [word]
    return stems


@cache
def _official_tokenizer() -> Any:
    from rouge_score.tokenizers import DefaultTokenizer

    return DefaultTokenizer(use_stemmer=True)


@cache
def _unicode_scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], tokenizer=_UnicodeTokenizer())


@cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # brings all of nltk along: two seconds

    return RougeScorer(["rougeL", "rouge1"], use_stemmer=True)


@cache
def _unstemmed_scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL", "rouge1"], use_stemmer=False)
