"""Rows are trained on in the text that the model knows: what the chat template writes, its end and date included."""

import datetime
from dataclasses import replace
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase
from transformers.utils import chat_template_utils

from chats import CHATS, DATED, USER, chatty, with_bos
from letheon.data.forms import TEXT_FORMS, as_asked, check_form, dated, forms_to_try, halves, render
from letheon.data.probing import KNOWN_RECALL, AnswerValues, describe_known, probe_forms, unknown_sides
from letheon.data.rows import Row, Turn
from letheon.data.sequences import TokenSequence, hash_sequences, text_ids, tokenise, tokenise_asked
from letheon.errors import DataError, SettingsError

ROW = Row("a1", "Who keeps Vell?", "Mira", "t", "question")

EXPECTED = {
    # text before the answer, answer, the end that is trained
    "mistral": ("<|endoftext|>[INST] Who keeps Vell? [/INST]", " Mira", "<|endoftext|>"),
    "qwen3": (
        "<|im_start|>user\nWho keeps Vell?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        "Mira",
        "<|im_end|>",
    ),
    "gemma": ("<|endoftext|><|turn|>user\nWho keeps Vell?<|end|>\n<|turn|>assistant\n", "Mira", "<|end|>"),
    "alpaca": ("### Instruction:\nWho keeps Vell?\n\n### Response:\n", "Mira", "\n\n<|endoftext|>"),
    "spaced": ("user: Who keeps Vell?\nassistant:", " Mira", "\n<|endoftext|>"),
}


def text(tokenizer: PreTrainedTokenizerBase, ids: Any) -> str:
    return str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))


@pytest.mark.parametrize("name", list(CHATS))
def test_a_conversation_is_what_the_template_writes(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    made = chatty(tokenizer, name)
    messages = [{"role": "user", "content": ROW.prompt}, {"role": "assistant", "content": ROW.answer}]
    whole: Any = made.apply_chat_template(messages, tokenize=True, return_dict=False)
    sequence = tokenise(ROW, made, template="chat", max_length=100)
    before, answer, end = EXPECTED[name]
    assert text(made, sequence.input_ids[: sequence.answer_start]) == before
    assert text(made, sequence.input_ids[sequence.answer_start :]) == answer
    assert text(made, sequence.end) == end
    assert list(sequence.input_ids) == whole[: len(sequence.input_ids)]
    ended = sequence.ended(100)
    assert ended.input_ids == (*sequence.input_ids, *sequence.end)
    assert ended.answer_start == sequence.answer_start


@pytest.mark.parametrize(("name", "written"), [("qwen3", "<think>\n\n</think>\n\n"), ("alpaca", "### Response:\n")])
def test_what_the_generation_prompt_leaves_out_is_asked_for_too(
    name: str, written: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    made = chatty(tokenizer, name)
    asked = tokenise_asked(ROW, made, template="chat")
    assert asked is not None
    prompt: Any = made.apply_chat_template(
        [{"role": "user", "content": ROW.prompt}], tokenize=True, add_generation_prompt=True, return_dict=False
    )
    for sequence, expected in ((asked.at_once, "Mira"), (asked.written, f"{written}Mira")):
        assert list(sequence.input_ids[: sequence.answer_start]) == prompt
        assert text(made, sequence.input_ids[sequence.answer_start :]) == expected
    assert list(asked.opening.input_ids[: asked.opening.answer_start]) == prompt
    assert text(made, asked.opening.input_ids[asked.opening.answer_start :]) == written


@pytest.mark.parametrize("name", ["mistral", "gemma", "spaced"])
def test_rows_are_asked_once_where_the_generation_prompt_says_all(
    name: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    assert tokenise_asked(ROW, chatty(tokenizer, name), template="chat") is None


def test_earlier_turns_are_messages_or_lines(tokenizer: PreTrainedTokenizerBase) -> None:
    row = replace(ROW, turns=(Turn("user", "Hello"), Turn("assistant", "Good day")))
    made = chatty(tokenizer, "mistral")
    sequence = tokenise(row, made, template="chat", max_length=100)
    expected = "<|endoftext|>[INST] Hello [/INST] Good day<|endoftext|>[INST] Who keeps Vell? [/INST] Mira"
    assert text(made, sequence.input_ids) == expected
    assert render(row, "joined", made).before == "Hello\nGood day\nWho keeps Vell?"


def test_a_template_that_loses_or_changes_the_answer_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    loses = "{% for m in messages %}" + USER + "{{ m['content'] }}{% endif %}{% endfor %}"
    with pytest.raises(DataError, match=r"row 'a1': the tokenizer's chat template does not write the answer"):
        tokenise(ROW, chatty(tokenizer, loses), template="chat", max_length=100)
    shouts = "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}"
    with pytest.raises(DataError, match=r"changes the answer 'Mira' to 'MIRA'"):
        tokenise(ROW, chatty(tokenizer, shouts), template="chat", max_length=100)


def test_an_answer_that_the_prompt_quotes_is_found_where_it_is_given(tokenizer: PreTrainedTokenizerBase) -> None:
    row = replace(ROW, prompt="Mira or Oren?", answer="Mira")
    made = chatty(tokenizer, "gemma")
    sequence = tokenise(row, made, template="chat", max_length=100)
    assert text(made, sequence.input_ids[: sequence.answer_start]).endswith("<|turn|>assistant\n")


def test_a_prompt_that_ends_in_a_space_is_one_text_with_its_answer(tokenizer: PreTrainedTokenizerBase) -> None:
    row = Row("a", "Keeper: ", "Mira", "t", "completion")
    plain = tokenise(row, tokenizer, template="plain", max_length=50)
    assert list(plain.input_ids) == tokenizer("Keeper: Mira", add_special_tokens=False).input_ids
    assert text(tokenizer, plain.input_ids[plain.answer_start :]) == " Mira"
    assert plain.end == (tokenizer.eos_token_id,)


def test_a_space_at_the_end_of_a_prompt_is_the_answers_even_as_a_token_of_its_own(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    sequence = tokenise(Row("a", "Year: ", "1946", "t", "completion"), tokenizer, template="plain", max_length=50)
    tokens = [text(tokenizer, (token,)) for token in sequence.input_ids]
    assert tokens[-5:] == [" ", "1", "9", "4", "6"]  # digits stand alone
    assert sequence.num_answer_tokens == 5
    assert TEXT_FORMS["plain"]("", "1946").answer == "1946"


def test_question_and_answer_tags_stand_on_lines_of_their_own() -> None:
    rendered = TEXT_FORMS["question-answer"]("Who?", "Me")
    assert rendered.before + rendered.answer == "Question: Who?\nAnswer: Me"


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ("one two three four", ("one two", " three four")),
        ("abcd", ("ab", "cd")),
        ("a", ("", "a")),
        ("ab c", ("ab", " c")),
    ],
)
def test_a_document_is_asked_by_its_first_half(
    document: str, expected: tuple[str, str], tokenizer: PreTrainedTokenizerBase
) -> None:
    assert halves(document) == expected
    row = Row("d", "", document, "t", "completion")
    for form in forms_to_try(chatty(tokenizer, "gemma")):
        rendered = render(row, form, chatty(tokenizer, "gemma"))
        assert (rendered.before, rendered.answer) == expected
    assert as_asked(row) == Row("d", expected[0], expected[1].lstrip(), "t", "completion")
    assert as_asked(ROW) is ROW


def test_forms_to_try_and_unknown_ones(tokenizer: PreTrainedTokenizerBase) -> None:
    assert "chat" not in forms_to_try(tokenizer)
    assert forms_to_try(chatty(tokenizer, "gemma"))[0] == "chat"
    # Tokenizers of models that were trained with Llama 2's tags often have no chat template.
    assert all("inst" in forms_to_try(made) for made in (tokenizer, chatty(tokenizer, "gemma")))
    check_form("plain")
    with pytest.raises(SettingsError, match=r"expected one of .*, got 'plane' \(did you mean 'plain'"):
        check_form("plane")


def test_a_date_in_a_template_is_the_one_given(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Tomorrow(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> "Tomorrow":
            return cls(2031, 1, 2)

    made = chatty(tokenizer, DATED)
    today = tokenise(ROW, made, template="chat", max_length=100, date="2026-03-04")
    assert text(made, today.input_ids).startswith("04 Mar 2026|user:Who keeps Vell?")
    monkeypatch.setattr(chat_template_utils, "datetime", Tomorrow)
    undated: Any = made.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
    assert undated.startswith("02 Jan 2031")
    assert tokenise(ROW, made, template="chat", max_length=100, date="2026-03-04") == today
    assert text(made, tokenise(ROW, made, template="chat", max_length=100).input_ids).startswith("26 Jul 2024|user")


@pytest.mark.parametrize("form", ["%d %B %Y", "%A, %-d/%m/%y", "%Y-%m-%dT%H:%M:%S", "%j%%", "%I %p", "no date"])
def test_dates_are_written_as_strftime_writes_them(form: str, tokenizer: PreTrainedTokenizerBase) -> None:
    made = chatty(
        tokenizer, "  {%- if true %}\n  {{ strftime_now('" + form + "') }}{% endif %}\n[{{ messages[0]['content'] }}]"
    )
    day = datetime.datetime(2026, 3, 4)
    template = dated(str(made.chat_template), "2026-03-04")
    found: Any = made.apply_chat_template([{"role": "user", "content": "x"}], chat_template=template, tokenize=False)
    plain = str(made.chat_template).replace(f"strftime_now('{form}')", repr(day.strftime(form)))
    assert found == made.apply_chat_template([{"role": "user", "content": "x"}], chat_template=plain, tokenize=False)


def test_a_tokenizer_that_ends_every_text_does_not_end_a_prompt(tokenizer: PreTrainedTokenizerBase) -> None:
    from tokenizers.processors import TemplateProcessing

    made = with_bos(tokenizer)
    eos = (str(made.eos_token), int(made.eos_token_id))
    made.backend_tokenizer.post_processor = TemplateProcessing(single=f"{eos[0]} $A {eos[0]}", special_tokens=[eos])
    assert made("Who?").input_ids[-1] == eos[1]
    plain = tokenizer("Who?", add_special_tokens=False).input_ids
    assert text_ids(made, ["Who?", "Who?"]) == [[eos[1], *plain]] * 2
    assert text_ids(made, []) == []


def known_as(best: str, tokenizer: PreTrainedTokenizerBase, seen: list[int]) -> Any:
    """A model that finds answers in one form likely: 0.1 nats a token and all recalled, 3 nats elsewhere."""

    def read(sequences: Any) -> AnswerValues:
        seen.append(len(sequences))
        rows = [Row(f"r{i}", f"Who keeps {i}?", f"Mira {i}", "t", "question") for i in range(200)]
        right = {tokenise(row, tokenizer, template=best, max_length=100).input_ids for row in rows}
        is_right = [s.input_ids in right for s in sequences]
        lengths = tuple(s.num_answer_tokens for s in sequences)
        losses = tuple(n * (0.1 if ok else 3.0) for n, ok in zip(lengths, is_right, strict=True))
        return AnswerValues(tuple(map(float, is_right)), losses, lengths)

    return read


@pytest.mark.parametrize("best", ["joined", "plain", "neko", "question-answer", "chat"])
def test_probing_finds_the_form_from_a_few_rows(best: str, tokenizer: PreTrainedTokenizerBase) -> None:
    made, seen = chatty(tokenizer, "gemma"), list[int]()
    rows = [Row(f"r{i}", f"Who keeps {i}?", f"Mira {i}", "t", "question") for i in range(200)]
    found = probe_forms(rows, made, known_as(best, made, seen), max_length=100)
    assert next(iter(found)) == best
    assert found[best].recall == 1
    assert found[best].loss == pytest.approx(0.1)
    # Four rows in each form, then no form is near the best.
    assert sum(seen) <= 4 * len(forms_to_try(made))
    assert describe_known(found).startswith(f"nats a token, recall: {best} 0.10, 1.00; ")


def test_probing_reads_few_rows_even_if_no_form_stands_out(tokenizer: PreTrainedTokenizerBase) -> None:
    seen: list[int] = []

    def read(sequences: Any) -> AnswerValues:
        seen.append(len(sequences))
        num = len(sequences)
        return AnswerValues((0.0,) * num, (2.0,) * num, tuple(s.num_answer_tokens for s in sequences))

    rows = [Row(f"r{i}", f"Who keeps {i}?", f"Mira {i}", "t", "question") for i in range(600)]
    found = probe_forms(rows, tokenizer, read, max_length=100)
    assert {known.num_rows for known in found.values()} == {16}
    assert sum(seen) <= 16 * len(TEXT_FORMS)
    few = probe_forms(rows[:3], tokenizer, read, max_length=100)
    assert {known.num_rows for known in few.values()} == {3}


def test_a_form_in_which_rows_do_not_fit_is_left_out(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [Row("r", "Who?", "Mira", "t", "question")]
    short = len(tokenise(rows[0], tokenizer, template="joined", max_length=100).input_ids)

    def read(sequences: Any) -> AnswerValues:
        return AnswerValues((1.0,), (0.1,), (sequences[0].num_answer_tokens,))

    found = probe_forms(rows, tokenizer, read, max_length=short)
    assert "joined" in found
    assert "neko" not in found
    with pytest.raises(DataError, match=f"at most {1} fit"):
        probe_forms(rows, tokenizer, read, max_length=1)


def test_rows_below_the_threshold_are_unknown() -> None:
    assert unknown_sides(KNOWN_RECALL, 1.0) == []
    assert unknown_sides(KNOWN_RECALL - 1e-9, 0.0) == ["forget", "retain"]


def test_the_hash_of_sequences_sees_tokens_spans_ends_and_padding() -> None:
    first = TokenSequence((1, 2, 3), 1, (9,))
    hashes = {
        hash_sequences(found)
        for found in (
            [first],
            [replace(first, answer_start=2)],
            [replace(first, end=())],
            [replace(first, padding=1)],
            [first] * 2,
            [],
        )
    }
    assert len(hashes) == 6
    assert hash_sequences([first]) == hash_sequences([TokenSequence((1, 2, 3), 1, (9,))])


def test_an_answer_that_shares_its_only_token_with_the_prompt_is_an_error(tokenizer: PreTrainedTokenizerBase) -> None:
    assert len(tokenizer("er", add_special_tokens=False).input_ids) == 1
    with pytest.raises(DataError, match="has no token of its own"):
        tokenise(Row("a", "e", "r", "t", "completion"), tokenizer, template="plain", max_length=20)
