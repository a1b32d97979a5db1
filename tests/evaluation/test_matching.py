"""Early ends: a generation is left only when no continuation can match."""

import unicodedata
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from letheon.evaluation.generation import Generation, generate, generate_answers
from letheon.evaluation.matching import can_still_match, decodes_in_order, skeleton
from letheon.evaluation.metrics.exact_match import exact_match, unicode_exact_match
from letheon.evaluation.readback import NOT_AVAILABLE
from letheon.model.architectures import new_model, train_tokenizer
from small import tiny_model

CHANGES: dict[str, Callable[[str], str]] = {
    "as it is": lambda text: text,
    "upper": str.upper,
    "lower": str.lower,
    "swapcase": str.swapcase,
    "decomposed": lambda text: unicodedata.normalize("NFKD", text),
    "composed": lambda text: unicodedata.normalize("NFKC", text),
    "folded": str.casefold,
    "spaced": lambda text: f" \u3000{text}\n",
}
# Sentence marks after spaces (cleaned up), marks on letters, letters that change their number, an emoji of several.
TEXTS = st.text(st.sampled_from([*"aN nß.'s?ΣςİıǰͅᾳﬁΩé１한👩🚀\u200d\u0301\u0345\u00a0\n"]), max_size=12) | st.text(
    max_size=8
)


@pytest.mark.slow
def test_what_a_match_has_in_common_is_independent_of_how_it_is_written() -> None:
    changes = (str.lower, str.casefold, *(lambda text, form=form: unicodedata.normalize(form, text) for form in FORMS))
    for start in range(0, 0x110000, 256):
        text = "".join(map(chr, range(start, start + 256)))
        expected = "".join(map(skeleton, text))
        assert skeleton(text) == expected, hex(start)
        for change in changes:
            assert skeleton("".join(map(change, text))) == expected, hex(start)
            assert skeleton(change(text)) == expected, hex(start)


FORMS = ("NFC", "NFD", "NFKC", "NFKD")


@pytest.mark.parametrize(
    ("text", "answer", "expected"),
    [
        ("", "Veldhaven", True),
        (" \n VELD", "Veldhaven", True),
        ("Veldhaven", "Veldhaven", True),
        ("Veldhaven  \n", "Veldhaven", True),  # blanks at the end are stripped
        ("Veldhaven.", "Veldhaven", False),
        ("Veldhaven in", "Veldhaven", False),  # the reference is how a wrong answer begins
        ("Velt", "Veldhaven", False),
        ("5550", "555-0134", False),
        ("Zoe", "Zoë", True),  # the accent may follow
        ("Zu", "Zoë", False),
        ("STRAS", "Straße", True),
        ("😀\ufffd", "😀😀", True),  # part of a character
        ("\ufffd", "Veldhaven", True),
        ("\ufffdx", "Veldhaven", False),
        ("anything", "\ufffd", True),
        ("Non", "nan", True),  # "None" reads as "nan"
        ("#N/A", "", True),
        ("nano", "nan", False),
        ("never", "nan", False),
        ("Non", "nano", False),
    ],
)
def test_whether_a_text_can_still_match(text: str, answer: str, expected: bool) -> None:
    assert can_still_match(text, answer) == expected


@pytest.mark.parametrize("answer", ["nan", "", "NaN ", "None"])
@pytest.mark.parametrize("text", sorted(NOT_AVAILABLE))
def test_all_that_reads_as_not_available_can_match_nan(text: str, answer: str) -> None:
    for end in range(len(text) + 1):
        assert can_still_match(text[:end], answer)


def byte_fallback_tokenizer() -> PreTrainedTokenizerBase:
    """Characters, and bytes for those that it does not know, with the decoder of Llama's SentencePiece."""
    names = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁aNnsé.?'Ω"]
    backend = Tokenizer(
        models.BPE({name: i for i, name in enumerate(names)}, [], unk_token="<unk>", byte_fallback=True)
    )
    backend.normalizer = normalizers.Replace(" ", "▁")
    parts: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", clean_up_tokenization_spaces=False)


BYTE_LEVEL = train_tokenizer(["Zoë says None, isn't it? 😀 " * 3], vocab_size=300)
BYTE_FALLBACK = byte_fallback_tokenizer()


@settings(max_examples=300, deadline=None)
@given(TEXTS, st.sampled_from(sorted(CHANGES)), st.sampled_from([BYTE_LEVEL, BYTE_FALLBACK]))
def test_no_part_of_a_match_is_given_up(text: str, change: str, tokenizer: PreTrainedTokenizerBase) -> None:
    answer = CHANGES[change](text)
    tokens = tokenizer(text, add_special_tokens=False).input_ids
    whole = tokenizer.clean_up_tokenization(cast("str", tokenizer.decode(tokens)))
    matches = exact_match(whole, answer) or unicode_exact_match(whole, answer)
    for end in range(1, len(tokens) + 1):
        part = cast("str", tokenizer.decode(tokens[:end], clean_up_tokenization_spaces=False))
        if matches:
            assert can_still_match(part, answer)
        if not can_still_match(part, answer):  # what is stored of a cut generation is no match either
            assert exact_match(part, answer) == unicode_exact_match(part, answer) == 0.0


def test_only_tokenizers_that_decode_piece_by_piece_are_trusted(tokenizer: PreTrainedTokenizerBase) -> None:
    assert decodes_in_order(tokenizer)
    assert decodes_in_order(BYTE_FALLBACK)
    backend = Tokenizer(models.WordPiece({"[UNK]": 0, "do": 1}, unk_token="[UNK]"))
    assert not decodes_in_order(PreTrainedTokenizerFast(tokenizer_object=backend))
    backend.decoder = decoders.WordPiece()  # turns " do not" into " don't"
    assert not decodes_in_order(PreTrainedTokenizerFast(tokenizer_object=backend))


def adversarial(whole: str) -> list[str]:
    """References that a generation matches, nearly matches, or begins with."""
    middle = len(whole) // 2
    made = [whole, whole.strip().upper(), whole[:middle], whole[: middle + 1], whole + "x", whole + " ", whole[1:]]
    return [
        *made,
        whole[:1],
        "nan",
        "None",
        "",
        whole.replace(" ", ""),
        "Veldhaven 😀",
        unicodedata.normalize("NFD", whole),
    ]


@pytest.mark.parametrize("seed", range(4))
def test_no_score_changes_with_random_models(seed: int, tokenizer: PreTrainedTokenizerBase) -> None:
    model = tiny_model("olmo", tokenizer, seed=seed)
    model.generation_config.eos_token_id = list(range(seed, 400, 40))  # many ends, so that some answers are short
    prompts = ["Which harbour?", "The old lighthouse keeper", "S"]
    whole = dict(zip(prompts, generate_answers(model, tokenizer, prompts, max_new_tokens=24, exact=True), strict=True))
    asked = [(prompt, answer) for prompt in prompts for answer in adversarial(whole[prompt])]
    found = generate(
        model, tokenizer, [prompt for prompt, _ in asked], to_match=[answer for _, answer in asked],
        guesses=[answer for _, answer in asked], max_new_tokens=24, batch_size=5,
    )  # fmt: skip
    check_scores([whole[prompt] for prompt, _ in asked], [answer for _, answer in asked], found)
    assert any(generation.is_cut for generation in found)


def check_scores(whole: list[str], answers: list[str], found: list[Generation]) -> None:
    for text, answer, generation in zip(whole, answers, found, strict=True):
        assert exact_match(generation.text, answer) == exact_match(text, answer)
        assert unicode_exact_match(generation.text, answer) == unicode_exact_match(text, answer)
        assert generation.is_cut or generation.text == text


def parrot(tokenizer: PreTrainedTokenizerBase, text: str) -> PreTrainedModel:
    """A model that after "?" says `text`, of which no token comes twice, and ends."""
    model: Any = new_model("gpt-neox", tokenizer=tokenizer, width=256, num_layers=1, num_heads=1, seed=0)
    tokens = [*tokenizer("?" + text).input_ids, 0]
    assert len(set(tokens)) == len(tokens)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("dense.weight", "dense_4h_to_h.weight")):
                parameter.zero_()
        states = torch.randn(model.config.vocab_size, 256, generator=torch.Generator().manual_seed(0))
        model.get_input_embeddings().weight.copy_(states)
        model.get_output_embeddings().weight.zero_()
        model.get_output_embeddings().weight[tokens[1:]] = states[tokens[:-1]]
    return cast("PreTrainedModel", model)


@pytest.mark.parametrize("text", [" Zoë 😀 ok", "None", " N/A", " isn't !", " STRAßE"])
def test_no_score_changes_for_a_known_text(text: str) -> None:
    model = parrot(BYTE_LEVEL, text)
    (whole,) = generate_answers(model, BYTE_LEVEL, ["?"], exact=True)
    assert whole == BYTE_LEVEL.clean_up_tokenization(text)
    answers = [*adversarial(whole), "Zoë 😁", "Zoe\u0308 😀 OK", "zoe 😀 ok", "n/a", "strasse", "isn't it?", "NaN"]
    for batch_size in (1, 32):
        found = generate(model, BYTE_LEVEL, ["?"] * len(answers), to_match=answers, batch_size=batch_size)
        check_scores([whole] * len(answers), answers, found)
    assert sum(generation.is_cut for generation in found) >= 4


def test_a_cut_comes_at_once_and_only_where_asked_for() -> None:
    model = parrot(BYTE_LEVEL, " Zoë 😀 ok")
    found = generate(model, BYTE_LEVEL, ["?"] * 3, to_match=["Veldhaven", None, "zoë 😀 OK"])
    assert found[1:] == [Generation(" Zoë 😀 ok", has_ended=True)] * 2
    assert found[0].is_cut
    assert len(BYTE_LEVEL(found[0].text).input_ids) <= 2
    assert generate(model, BYTE_LEVEL, ["?"], to_match=["Veldhaven"], exact=True) == [
        Generation(" Zoë 😀 ok", has_ended=True)
    ]
    (late,) = generate(model, BYTE_LEVEL, ["?"], to_match=["Veldhaven"], uncut_tokens=[3])
    assert late.is_cut
    assert len(BYTE_LEVEL(late.text).input_ids) >= 3
