"""Answer spans are right in any script, under every template and every kind of tokenizer."""

import doctest
import json
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import ByT5Tokenizer, CanineTokenizer, PreTrainedTokenizer, PreTrainedTokenizerBase
from transformers import PreTrainedTokenizerFast as Fast

from letheon import Row
from letheon.data.forms import TEXT_FORMS, Rendered
from letheon.data.sequences import leading_special_ids, tokenise
from letheon.errors import DataError
from letheon.model.architectures import train_tokenizer

CHAT = (
    "{% for m in messages %}{% if m['role'] == 'user' %}<u>{{ m['content'] }}</u>\n{% else %}<a>{{ m['content'] }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)

PAIRS = {
    "chinese": ("米拉住在哪里？", "她住在哈罗村，靠近河湾。"),
    "japanese": ("ミラさんの住所は?", "東京都千代田区のコーヒー店"),
    "arabic": ("ما اسم الطبيب؟", "اسمه الدكتور سامي الحداد."),
    "arabic-marks": ("مَا اسْمُهُ؟", "سَامِي"),
    "hebrew": ("איפה גרה מירה?", "בכפר הָרוֹ."),
    "hindi": ("मीरा कहाँ रहती है?", "वह क्षितिज नगर में रहती है।"),
    "thai": ("มีราอาศัยอยู่ที่ไหน?", "เธออาศัยอยู่ที่น้ำตก"),
    "russian": ("Где живёт Мира?", "Она живёт в деревне Харроу."),
    "greek": ("Πού μένει η Μίρα;", "Στο χωριό Χάροου, Ἀθῆναι ΟΔΟΣ"),
    "korean": ("미라는 어디에 살아요?", "해로 마을에 살아요."),
    "emoji": ("Her family?", "👩‍👩‍👧‍👦 and 👋🏽, ❤️"),
    "flags": ("Where to? 🇩🇪🇫🇷", "🇯🇵🇧🇷"),
    "nfc": ("Where is the café?", "Près de l'hôtel Zoë, Łódź"),
    "nfd": (unicodedata.normalize("NFD", "Where is the café?"), unicodedata.normalize("NFD", "Près de l'hôtel Zoë")),
    "mixed-forms": (unicodedata.normalize("NFD", "Où est Zoë"), "Où est Zoë"),
    "mark-first": ("cafe", "\u0301 begins with a mark"),
    "compatible": ("Which ﬁle? ①", "ﬁnal ½ Ｆｕｌｌ ㎏ ﷺ"),
    "spaces": ("a\u00a0price:\u00a0", "12\u202f000\u00a0€ \u3000und\u2009mehr"),
    "right-to-left-marks": ("name\u200f:", "\u200eMira\u200e \u05d0"),
    "joiners": ("می\u200cخواهم", "نمی\u200cدانم"),
}


def row(prompt: str, answer: str) -> Row:
    return Row("x1qa0", prompt, answer, "Task1", "question")


def corpus() -> list[str]:
    return [text for prompt, answer in PAIRS.values() for text in (prompt, answer, f"{prompt} {answer}")]


def sentencepiece_style(normalizer: normalizers.Normalizer) -> Fast:
    """Like Llama 2's: a mark for the space, one before the text, bytes for unseen characters, a BOS.

    It has seen only every third text, so that most scripts are bytes.
    """
    trained = Tokenizer(models.BPE())
    trained.normalizer, trained.pre_tokenizer = normalizer, pre_tokenizers.Metaspace(prepend_scheme="first")
    trained.train_from_iterator(corpus()[::3], trainers.BpeTrainer(vocab_size=500, show_progress=False))
    learned, merges = trained.get_vocab(), _merges(trained)
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *sorted(learned, key=lambda t: learned[t])]
    made = Tokenizer(
        models.BPE({t: i for i, t in enumerate(tokens)}, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    )
    made.normalizer, made.pre_tokenizer = trained.normalizer, trained.pre_tokenizer
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return Fast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def _merges(trained: Tokenizer) -> list[tuple[str, str]]:
    return [(first, second) for first, second in json.loads(trained.to_str())["model"]["merges"]]


def sentencepiece_without_words() -> Fast:
    """Like the first Llama 2 files: the marks come from the normaliser, and tokens may reach across words."""
    tokenizer = sentencepiece_style(normalizers.NFC())
    backend: Any = tokenizer.backend_tokenizer
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.pre_tokenizer = None
    return Fast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def word_pieces() -> Fast:
    """Like BERT's: [CLS] before, [SEP] behind, lower case, spaces not kept."""
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    made.pre_tokenizer, made.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    special = ["[UNK]", "[CLS]", "[SEP]"]
    made.train_from_iterator(
        [*corpus(), *TEMPLATE_TEXTS],
        trainers.WordPieceTrainer(vocab_size=1500, special_tokens=special, show_progress=False),
    )
    made.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    return Fast(tokenizer_object=made, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")


def unigram() -> Fast:
    """Like XLM-R's: pieces by likelihood, compatibility forms and lower case."""
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    made.decoder = decoders.Metaspace(prepend_scheme="always")
    made.train_from_iterator(
        [*corpus(), *TEMPLATE_TEXTS],
        trainers.UnigramTrainer(vocab_size=600, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False),
    )
    return Fast(tokenizer_object=made, unk_token="<unk>")


TEMPLATE_TEXTS = ["### Question: \n ### Answer:", "### Text:", "<u></u>\n<a>", "[INST] [/INST]", "[inst] [/inst]"]


@dataclass(frozen=True)
class Kind:
    """A kind of tokenizer, and what it does to a text by design before it cuts it."""

    make: Callable[[], PreTrainedTokenizerBase]
    normalise: Callable[[str], str]


def _own_normaliser(text: str, *, name: str, keep_spaces: bool) -> str:
    tokenizer = made(name)
    assert isinstance(tokenizer, Fast)
    normalised = str(tokenizer.backend_tokenizer.normalizer.normalize_str(text))
    return normalised if keep_spaces else "".join(normalised.split())


def _one_space_less(text: str) -> str:
    return text.removeprefix(" ")  # decoding takes the space away that stands for the beginning of a text


KINDS: dict[str, Kind] = {
    "byte-bpe": Kind(lambda: train_tokenizer(corpus()[::2], vocab_size=600), str),
    "llama-nfc": Kind(
        lambda: sentencepiece_style(normalizers.NFC()), lambda t: _one_space_less(unicodedata.normalize("NFC", t))
    ),
    "llama-nfkc": Kind(
        lambda: sentencepiece_style(normalizers.NFKC()), lambda t: _one_space_less(unicodedata.normalize("NFKC", t))
    ),
    "llama-no-words": Kind(sentencepiece_without_words, _one_space_less),
    "wordpiece-lower": Kind(word_pieces, lambda t: _own_normaliser(t, name="wordpiece-lower", keep_spaces=False)),
    "unigram-lower": Kind(
        unigram, lambda t: _own_normaliser(t, name="unigram-lower", keep_spaces=True).removeprefix(" ")
    ),
    "slow-bytes": Kind(ByT5Tokenizer, str),
    "slow-characters": Kind(CanineTokenizer, str),
}


@cache
def made(name: str) -> PreTrainedTokenizerBase:
    tokenizer = KINDS[name].make()
    tokenizer.chat_template = CHAT
    return tokenizer


def rendered_by(template: str, prompt: str, answer: str) -> Rendered:
    if template == "chat":
        return Rendered(before=f"<u>{prompt}</u>\n<a>", answer=answer)
    return TEXT_FORMS[template](prompt, answer)


def text_of(name: str, ids: Sequence[int]) -> str:
    text = str(made(name).decode(list(ids), clean_up_tokenization_spaces=False))
    return "".join(text.split()) if name == "wordpiece-lower" else text


@pytest.mark.parametrize("template", [*TEXT_FORMS, "chat"])
@pytest.mark.parametrize("name", list(KINDS))
@pytest.mark.parametrize("script", list(PAIRS))
def test_the_span_is_the_answer(name: str, template: str, script: str) -> None:
    if template == "plain" and name == "wordpiece-lower":
        pytest.skip("words that nothing parts are one word, which its vocabulary may lack")
    prompt, answer = PAIRS[script]
    rendered, normalise = rendered_by(template, prompt, answer), KINDS[name].normalise
    sequence = tokenise(row(prompt, answer), made(name), template=template, max_length=2000)
    lead = [] if template == "chat" else leading_special_ids(made(name))
    assert list(sequence.input_ids[: len(lead)]) == lead
    before, span = sequence.input_ids[len(lead) : sequence.answer_start], sequence.input_ids[sequence.answer_start :]
    # Where nothing parts the two, a token, or a mark, may hold the end of one with the other.
    if template in ("plain", "inst"):
        assert text_of(name, [*before, *span]) == normalise(rendered.before + rendered.answer)
    else:
        assert text_of(name, span) == normalise(rendered.answer)
        assert text_of(name, before) == normalise(rendered.before)
    texts = [rendered.before, rendered.answer] if rendered.as_pair else [rendered.before + rendered.answer]
    assert [*before, *span] == [i for text in texts for i in made(name)(text, add_special_tokens=False).input_ids]


CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0")


@given(st.text(CHARACTERS, min_size=1, max_size=8), st.text(CHARACTERS, min_size=1, max_size=8))
@settings(max_examples=100, deadline=None)
def test_any_text_is_cut_between_prompt_and_answer(prompt: str, answer: str) -> None:
    assume(prompt.strip() and answer.strip())
    tokenizer = made("byte-bpe")
    for template in TEXT_FORMS:
        if template in ("plain", "inst"):  # nothing parts the two, so that one token may hold letters of both
            continue
        rendered = TEXT_FORMS[template](prompt, answer)
        sequence = tokenise(row(prompt, answer), tokenizer, template=template, max_length=500)
        before, span = sequence.input_ids[: sequence.answer_start], sequence.input_ids[sequence.answer_start :]
        assert text_of("byte-bpe", before) + text_of("byte-bpe", span) == rendered.before + rendered.answer
        # A token of several spaces may reach back into the prompt.
        assert text_of("byte-bpe", span).removesuffix(rendered.answer).strip() == ""
        assert len(text_of("byte-bpe", span)) >= len(rendered.answer)


@given(st.text(CHARACTERS, min_size=1, max_size=8), st.text(CHARACTERS, min_size=1, max_size=8))
@example("0 ", "0")
@settings(max_examples=100, deadline=None)
def test_one_text_is_tokenised_whole_and_cut_where_a_token_first_reaches_the_answer(prompt: str, answer: str) -> None:
    assume(prompt.strip() and answer.strip())
    tokenizer = made("byte-bpe")
    encoded = tokenizer(prompt + answer, add_special_tokens=False, return_offsets_mapping=True)
    before = len(prompt.rstrip(" "))  # a space between the two is the answer's
    start = next(i for i, (_, end) in enumerate(encoded["offset_mapping"]) if end > before)
    assume(start < len(encoded.input_ids) - 1 or start > 0)  # else prompt and answer are one token, which is an error
    sequence = tokenise(row(prompt, answer), tokenizer, template="plain", max_length=500)
    assert list(sequence.input_ids) == encoded.input_ids
    assert sequence.answer_start == max(start, 1)


# Runs without brackets, each together with a ">" that stands before it, as at the end of the chat template.
STRADDLING = r">?[^\s<>/]+|\s|[<>/]"


class SlowWords(PreTrainedTokenizer):
    """A tokenizer in Python, so without offsets, whose tokens are those of `STRADDLING`."""

    def __init__(self, words: Sequence[str]) -> None:
        self._words = list(words)
        super().__init__()  # type: ignore[no-untyped-call]

    @property
    def vocab_size(self) -> int:
        return len(self._words)

    def get_vocab(self) -> dict[str, int]:
        return {word: i for i, word in enumerate(self._words)}

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        return re.findall(STRADDLING, text)

    def _convert_token_to_id(self, token: str) -> int:
        return self._words.index(token)

    def _convert_id_to_token(self, index: int) -> str:
        return self._words[index]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return "".join(tokens)


@pytest.mark.parametrize("is_fast", [True, False])
@pytest.mark.parametrize("answer", ["Мира живёт", "मीरा", "👩‍👧", "<без"])
def test_a_token_with_the_end_of_the_prompt_counts_as_answer(answer: str, *, is_fast: bool) -> None:
    text = f"<u>кто?</u>\n<a>{answer}"
    words = sorted({word for part in (text, text.removesuffix(answer)) for word in re.findall(STRADDLING, part)})
    if is_fast:
        backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[0]))
        backend.pre_tokenizer = pre_tokenizers.Split(Regex(STRADDLING), "isolated")
        backend.decoder = decoders.Fuse()
    tokenizer = Fast(tokenizer_object=backend) if is_fast else SlowWords(words)
    tokenizer.chat_template = CHAT
    sequence = tokenise(row("кто?", answer), tokenizer, template="chat", max_length=100)
    expected = answer if answer.startswith("<") else f">{answer}"
    assert tokenizer.decode(list(sequence.input_ids[sequence.answer_start :])) == expected
    assert tokenizer.decode(list(sequence.input_ids)) == text


def only_letters(known: str) -> Fast:
    """Letters it knows, a mark for the space, no token for "unknown": what it does not know it leaves out."""
    backend = Tokenizer(models.BPE({letter: i for i, letter in enumerate(f"▁{known}")}, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return Fast(tokenizer_object=backend)


@pytest.mark.parametrize("make", [word_pieces, lambda: only_letters("abc")])
def test_an_answer_in_a_script_that_the_tokenizer_does_not_know_is_an_error(make: Callable[[], Fast]) -> None:
    tokenizer = make()
    assert tokenise(row("a", "b"), tokenizer, template="joined", max_length=50).num_answer_tokens > 0
    with pytest.raises(
        DataError, match=r"line 3: the tokenizer turns the answer 'ᚠᚢᚦ' into unknown tokens and spaces only"
    ):
        tokenise(row("a", "ᚠᚢᚦ"), tokenizer, template="joined", max_length=50, where="rows.jsonl, line 3")


def test_the_numbers_in_the_documentation_are_right() -> None:
    documentation = Path(__file__).parents[2] / "docs" / "languages.md"
    found = doctest.testfile(str(documentation), module_relative=False, encoding="utf-8")
    assert (found.failed, found.attempted) == (0, 15)
