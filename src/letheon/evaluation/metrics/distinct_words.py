"""Scores over the distinct words and n-grams of a text, as RWKU takes them; pure functions of texts."""

import math
from collections import Counter
from collections.abc import Sequence

ENTROPY_WEIGHTS = ((2, 2 / 3), (3, 4 / 3))
"""The lengths of n-grams whose entropies are averaged, and how much each counts."""


def distinct_rouge_l(generation: str, answer: str) -> float:
    """Return the ROUGE-L recall of `answer` in `generation` as the package `rouge` 1.0.1 has it, 0 to 1.

    Of every sentence of the answer with every sentence of the generation the longest common subsequence of words is
    taken; the score is the number of distinct words in any of them over that of distinct words in the answer. Words
    end at white space, sentences at each full stop; case and other punctuation count. Lower is better on rows to
    forget. A text of full stops alone gives 0.

    Differs from Lin (2004), and from `plain_rouge`, in that a word counts once however often it comes.
    """
    said, wanted = _sentences(generation), _sentences(answer)
    if not said or not wanted:
        return 0.0
    found = {word for sentence in wanted for other in said for word in _common(sentence, other)}
    return len(found) / len({word for sentence in wanted for word in sentence})


def ngram_entropy(words: Sequence[str]) -> float:
    """Return the mean of 2/3 of the entropy of the 2-grams and 4/3 of that of the 3-grams, in bits; higher is better.

    The weighted n-gram entropy of Zhang et al. (arXiv 1809.05972), as RWKU takes it for fluency: from 0, which is also
    what a text without n-grams gives, up; a text that repeats itself has little.
    """
    return sum(weight * _entropy(words, n) for n, weight in ENTROPY_WEIGHTS) / len(ENTROPY_WEIGHTS)


def _entropy(words: Sequence[str], n: int) -> float:
    counts = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
    total = sum(counts.values())
    return sum(count / total * math.log2(total / count) for count in counts.values())


def _sentences(text: str) -> list[list[str]]:
    # A sentence of white space alone holds one empty word, which counts like any other.
    return [" ".join(part.split()).split(" ") for part in text.split(".") if part]


def _common(words: Sequence[str], others: Sequence[str]) -> list[str]:
    """Return the longest common subsequence; of several that which a walk back from the ends finds in `others` first.

    Which one it is matters where they have other numbers of distinct words.
    """
    lengths = [[0] * (len(others) + 1) for _ in range(len(words) + 1)]
    for i, word in enumerate(words, 1):
        for j, other in enumerate(others, 1):
            shorter = max(lengths[i - 1][j], lengths[i][j - 1])
            lengths[i][j] = lengths[i - 1][j - 1] + 1 if word == other else shorter
    found: list[str] = []
    i, j = len(words), len(others)
    while i and j:
        if words[i - 1] == others[j - 1]:
            found.append(words[i - 1])
            i, j = i - 1, j - 1
        elif lengths[i - 1][j] > lengths[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return found
