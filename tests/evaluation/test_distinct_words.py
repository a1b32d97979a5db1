"""Scores over distinct words: numbers worked out by hand."""

import pytest

from letheon.evaluation.metrics.distinct_words import distinct_rouge_l, ngram_entropy


@pytest.mark.parametrize(
    ("generation", "answer", "wanted"),
    [
        ("Stephen King wrote it", "Stephen King", 1.0),
        ("King", "Stephen King", 1 / 2),
        ("paris", "Paris", 0.0),  # case counts
        ("Paris,", "Paris", 0.0),  # and punctuation
        ("Mr. Smith", "Smith.", 1.0),  # but full stops end sentences
        ("the cat. sat down", "the cat sat", 1.0),  # several sentences together
        ("b a", "a b", 1 / 2),  # order counts within a sentence
        ("a x b x", "a a a b", 1.0),  # a word counts once
        ("one", "one. . two", 1 / 3),  # white space between full stops is a word of its own
        ("NOANSWER", "Stephen King", 0.0),
        ("...", "x", 0.0),
        ("x", "...", 0.0),
        ("", "x", 0.0),
    ],
)
def test_recall_by_hand(generation: str, answer: str, wanted: float) -> None:
    assert distinct_rouge_l(generation, answer) == pytest.approx(wanted)


def test_recall_takes_the_subsequence_that_the_package_finds() -> None:
    # Two subsequences of two words are common, one of them with one word twice.
    assert distinct_rouge_l("a b a", "a a b") == 1.0
    assert distinct_rouge_l("a a b", "a b a") == 1 / 2


def test_recall_is_that_of_the_package_where_it_is_installed() -> None:
    rouge = pytest.importorskip("rouge")
    pieces = ["a", "b", "A", "b.", "c. d", ".", "a,"]
    for number in range(7**4):
        text = " ".join(pieces[number // 7**place % 7] for place in range(4))
        found = rouge.Rouge(metrics=["rouge-l"]).get_scores(text, "b a c. a b")[0]["rouge-l"]["r"]
        assert distinct_rouge_l(text, "b a c. a b") == found


def test_entropy_by_hand() -> None:
    # 2-grams ab twice, ba once: 0.9183 bits; 3-grams aba, bab: 1 bit. (2/3 x 0.9183 + 4/3 x 1) / 2.
    assert ngram_entropy(["a", "b", "a", "b"]) == pytest.approx(0.97277, abs=1e-5)
    assert ngram_entropy(["a"] * 9) == 0.0
    assert ngram_entropy(["a"]) == ngram_entropy([]) == 0.0
    # 16 different words: 15 2-grams, 14 3-grams, each once.
    assert ngram_entropy([str(n) for n in range(16)]) == pytest.approx((2 / 3 * 3.906891 + 4 / 3 * 3.807355) / 2)
