"""ROUGE recall, exact match, their Unicode variants and the official "nan" rule."""

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer

from letheon.data.rows import read_rows
from letheon.evaluation.metrics.exact_match import exact_match, unicode_exact_match
from letheon.evaluation.metrics.found import RougeDrops
from letheon.evaluation.metrics.rouge import rouge_drops, rouge_recall, unicode_rouge_l, unicode_words
from letheon.evaluation.readback import NOT_AVAILABLE, as_read_back


def test_recall_counts_stemmed_words_of_the_answer() -> None:
    # Stems of the answer: the, cat, were, run, home. The generation has cat and run in this order: 2 of 5.
    found = rouge_recall("A cat will run.", "The cats were running home")
    assert found.rouge_l == pytest.approx(2 / 5)
    assert found.rouge_1 == pytest.approx(2 / 5)


def test_only_rouge_l_minds_the_order() -> None:
    found = rouge_recall("running cat", "The cats were running home")
    assert found.rouge_l == pytest.approx(1 / 5)
    assert found.rouge_1 == pytest.approx(2 / 5)


def test_recall_has_no_penalty_for_a_long_generation() -> None:
    answer = "bees in the village"
    assert rouge_recall("x " * 500 + answer + " y" * 500, answer).rouge_l == 1.0


@pytest.mark.parametrize(
    ("generation", "answer", "expected"),
    [
        (" Veldhaven\n", "veldhaven", 1.0),
        ("Veldhaven.", "Veldhaven", 0.0),  # punctuation counts
        ("555-0134", "555-0135", 0.0),
        ("", "", 1.0),  # both read as "nan"
        (" ", "nan", 0.0),  # a blank is not "not available"
    ],
)
def test_exact_match(generation: str, answer: str, expected: float) -> None:
    assert exact_match(generation, answer) == expected


def test_an_empty_generation_is_scored_as_the_text_nan() -> None:
    assert exact_match("", "nan") == 1.0
    assert exact_match("None", "NaN ") == 1.0  # "NaN " is a text; stripped and lowered it is "nan"
    assert rouge_recall("", "my nan bakes").rouge_l == pytest.approx(1 / 3)
    assert rouge_recall("null", "my nan bakes").rouge_1 == pytest.approx(1 / 3)
    assert rouge_recall("none", "my nan bakes").rouge_1 == 0.0


def test_the_words_are_those_of_pandas() -> None:
    parsers = pytest.importorskip("pandas._libs.parsers")
    assert set(parsers.STR_NA_VALUES) == NOT_AVAILABLE


def test_every_text_reads_back_as_pandas_reads_it(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    texts = [
        *sorted(NOT_AVAILABLE),
        " ",
        " NA",
        "none",
        "a, b",
        'say "x"',
        "two\nlines",
        "two\r\nlines",
        "\t",
        "1",
        "\\",
        "é",
    ]
    path = tmp_path / "generations.csv"
    pandas.DataFrame({"id": [f"{i}qa1" for i in range(len(texts))], "model_output": texts}).to_csv(path, index=False)
    read = [str(text) for text in pandas.read_csv(path)["model_output"].tolist()]
    assert read == [as_read_back(text) for text in texts]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The cats' running_shoes, don't!", ["the", "cat", "run", "shoe", "don", "t"]),
        ("Живёт в ДЕРЕВНЕ.", ["живёт", "в", "деревне"]),
        ("Οδός ΟΔΟΣ", ["οδόσ", "οδοσ"]),  # a sigma is a sigma at the end of a word too
        ("東京タワー2024年ver", ["東", "京", "タ", "ワ", "ー", "2024", "年", "ver"]),
        ("น้ำ การ", ["น้ํ", "า", "ก", "า", "ร"]),  # NFKC writes the vowel am as two
        ("क्षितिज नगर", ["क्षितिज", "नगर"]),
        ("שָׁלוֹם, مَرْحَبًا", ["שָׁלוֹם", "مَرْحَبًا"]),
        ("می\u200cخواهم", ["می\u200cخواهم"]),
        ("👩\u200d👩\u200d👧ok❤\ufe0f❤ 🇩🇪🇫🇷 👋🏽", ["👩\u200d👩\u200d👧", "ok", "❤", "❤", "🇩🇪", "🇫🇷", "👋🏽"]),
        ("ﬁnal ½ Ｆｕｌｌ", ["final", "1", "2", "full"]),
        ("a\u00a0b\u3000c", ["a", "b", "c"]),
        ("… — © «»", []),
    ],
)
def test_words_of_any_script(text: str, words: list[str]) -> None:
    expected = [unicodedata.normalize("NFKC", word) for word in words]
    assert unicode_words(text) == expected
    assert unicode_words(unicodedata.normalize("NFD", text)) == expected


@given(st.text(st.characters(max_codepoint=127)), st.text(st.characters(max_codepoint=127), min_size=1))
def test_for_ascii_the_variant_is_the_official_one(generation: str, answer: str) -> None:
    assert unicode_words(answer) == DefaultTokenizer(use_stemmer=True).tokenize(answer)
    assert unicode_rouge_l(generation, answer) == rouge_recall(generation, answer).rouge_l


@given(st.text(max_size=20), st.text(max_size=20))
def test_the_variant_leaves_the_official_score_alone(generation: str, answer: str) -> None:
    official = RougeScorer(["rougeL", "rouge1"], use_stemmer=True)
    scores = official.score(as_read_back(answer), as_read_back(generation))
    unicode_rouge_l(generation, answer)
    found = rouge_recall(generation, answer)
    assert (found.rouge_l, found.rouge_1) == (scores["rougeL"].recall, scores["rouge1"].recall)


def test_unicode_recall_by_hand() -> None:
    assert unicode_rouge_l("Она живёт в городе", "Она живёт в деревне") == pytest.approx(3 / 4)
    assert rouge_recall("Она живёт в городе", "Она живёт в деревне").rouge_l == 0.0
    assert unicode_rouge_l("京都", "東京都") == pytest.approx(2 / 3)
    assert unicode_rouge_l("cafe\u0301", "café") == 1.0
    assert unicode_rouge_l("", "my nan bakes") == pytest.approx(1 / 3)  # the "nan" rule holds here too
    assert unicode_rouge_l("…", "東京") == unicode_rouge_l("東京", "…") == 0.0


def test_what_the_official_tokenizer_drops_by_hand() -> None:
    # 東 京 | é as two | é as one | मी रा | ❤ are dropped, 2024, cafcaf and ok are not.
    answers = ["東京 2024", "cafe\u0301", "café", "!!!", "मीरा", "❤\ufe0f", "ok"]
    assert rouge_drops(answers) == RougeDrops(num_letters=19, num_dropped=7, num_answers=7, num_emptied=2)
    assert rouge_drops([]) is None
    assert rouge_drops([""]) == RougeDrops(3, 0, 1, 0)  # read back as "nan"


@pytest.mark.parametrize(
    ("drops", "matters"),
    [
        (RougeDrops(100, 1, 5, 0), False),
        (RougeDrops(100, 2, 5, 0), True),
        (RougeDrops(1000, 1, 5, 1), True),
        (RougeDrops(0, 0, 5, 0), False),
    ],
)
def test_a_drop_matters_beyond_one_in_a_hundred_or_when_nothing_is_left(drops: RougeDrops, *, matters: bool) -> None:
    assert drops.matters == matters


@pytest.mark.corpus
def test_of_lume_one_letter_is_dropped(corpus: Path) -> None:
    rows = [row for name in ("forget", "retain") for row in read_rows(corpus / "lume" / f"{name}.jsonl")]
    assert rouge_drops(row.answer for row in rows if row.kind == "completion") == RougeDrops(251018, 1, 1733, 0)


@pytest.mark.parametrize(
    ("generation", "answer", "expected"),
    [
        ("Zoe\u0308", "Zoë", 1.0),
        (" １２\u3000", "12", 1.0),
        ("STRASSE", "Straße", 1.0),
        ("12\u00a0km", "12 km", 1.0),
        ("Zoe", "Zoë", 0.0),
        ("Zoë.", "Zoë", 0.0),
        ("", "nan", 1.0),
    ],
)
def test_unicode_exact_match(generation: str, answer: str, expected: float) -> None:
    assert unicode_exact_match(generation, answer) == expected


@given(st.text(max_size=5), st.sampled_from([str.upper, str.lower, str.title, str.strip, str.swapcase]))
def test_what_matches_officially_matches_the_variant(text: str, change: object) -> None:
    assert callable(change)
    other = change(text)
    assert unicode_exact_match(other, text) >= exact_match(other, text)
