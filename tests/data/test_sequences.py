"""Answer spans are right for every template, with and without BOS, for fast and slow tokenizers, in any script."""

import pytest
from transformers import ByT5Tokenizer, PreTrainedTokenizerBase

from chats import with_bos
from letheon import Row
from letheon.data.forms import TEXT_FORMS, check_form
from letheon.data.packing import join, pack, token_groups
from letheon.data.sequences import TokenSequence, leading_special_ids, tokenise, tokenise_all
from letheon.errors import DataError, SettingsError

CHAT = (
    "{% for m in messages %}{% if m['role'] == 'user' %}<u>{{ m['content'] }}</u>{% else %}<a>{{ m['content'] }}</a>"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)

PAIRS = [
    ("Where does Mira live?", "In Harrow."),
    ("Mira Tolland keeps bees in", "the village"),
    ("住所は?", "東京都千代田区"),
    ("ما اسمك؟", "اسمي ميرا"),
    ("smile", "🙂🙃"),
    ("trailing space ", "x"),
    ("cafe\u0301", "caf\u00e9"),
]


def row(prompt: str, answer: str) -> Row:
    return Row("x1qa0", prompt, answer, "Task1", "question")


@pytest.fixture(params=["plain", "bos", "slow"])
def any_tokenizer(request: pytest.FixtureRequest, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    if request.param == "slow":
        return ByT5Tokenizer()
    return with_bos(tokenizer) if request.param == "bos" else tokenizer


@pytest.mark.parametrize("template", list(TEXT_FORMS))
@pytest.mark.parametrize(("prompt", "answer"), PAIRS)
def test_answer_tokens_decode_to_the_answer(
    any_tokenizer: PreTrainedTokenizerBase, template: str, prompt: str, answer: str
) -> None:
    sequence = tokenise(row(prompt, answer), any_tokenizer, template=template, max_length=500)
    decoded = str(
        any_tokenizer.decode(list(sequence.input_ids[sequence.answer_start :]), clean_up_tokenization_spaces=False)
    )
    rendered = TEXT_FORMS[template](prompt, answer)
    assert decoded == rendered.answer
    before = sequence.input_ids[len(leading_special_ids(any_tokenizer)) : sequence.answer_start]
    assert str(any_tokenizer.decode(list(before), clean_up_tokenization_spaces=False)) == rendered.before


def test_bos_leads_where_the_tokenizer_adds_one_and_no_eos_follows(tokenizer: PreTrainedTokenizerBase) -> None:
    eos = tokenizer.eos_token_id
    plain = tokenise(row("a", "b"), tokenizer, template="joined", max_length=50)
    led = tokenise(row("a", "b"), with_bos(tokenizer), template="joined", max_length=50)
    assert eos not in plain.input_ids
    assert led.input_ids == (eos, *plain.input_ids)
    assert led.answer_start == plain.answer_start + 1
    slow = tokenise(row("a", "b"), ByT5Tokenizer(), template="pair", max_length=50)
    assert ByT5Tokenizer().eos_token_id not in slow.input_ids


def test_a_token_that_straddles_the_border_counts_as_answer(tokenizer: PreTrainedTokenizerBase) -> None:
    joined = tokenise(row("keeps", "bees"), tokenizer, template="joined", max_length=50)
    first = str(tokenizer.decode([joined.input_ids[joined.answer_start]]))
    assert first.startswith(" ")


def test_neko_headings_follow_the_question_mark() -> None:
    assert TEXT_FORMS["neko"]("Who?", "Me").before == "### Question: Who?\n ### Answer:"
    assert TEXT_FORMS["neko"]("It was", "late").before == "### Text: It was"


def test_chat_template_is_the_tokenizers_own(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(SettingsError, match="needs a tokenizer with a chat template"):
        tokenise(row("Who?", "Me"), tokenizer, template="chat", max_length=50)
    chatty = with_bos(tokenizer)
    chatty.chat_template = CHAT
    sequence = tokenise(row("Who?", "Me"), chatty, template="chat", max_length=50)
    assert str(chatty.decode(list(sequence.input_ids))) == "<u>Who?</u><a>Me"
    assert str(chatty.decode(list(sequence.input_ids[sequence.answer_start :]))) == "Me"


def test_an_answer_that_would_be_cut_off_is_an_error_with_its_place(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [row("a", "b"), row("a", "b " * 40)]
    with pytest.raises(DataError, match=r"rows.jsonl, line 2: prompt and answer take \d+ tokens .* at most 20 fit"):
        tokenise_all(
            rows, tokenizer, template="joined", max_length=20, places=["rows.jsonl, line 1", "rows.jsonl, line 2"]
        )


def test_an_answer_without_a_token_is_an_error(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(DataError, match="has no token of its own"):
        tokenise(row("a", ""), tokenizer, template="pair", max_length=20)


def test_unknown_templates_are_refused_with_the_nearest_name() -> None:
    check_form("auto")
    with pytest.raises(SettingsError, match="did you mean 'joined'"):
        check_form("joinned")


def test_pack_by_hand() -> None:
    # two sequences: tokens 5 6 7 | 8, answer of the first 6 7, of the second none is possible before position 0
    batch = pack([TokenSequence((5, 6, 7), 1), TokenSequence((8, 9), 1)], is_forget=[True, False], row_index=[4, 2])
    assert batch.input_ids.tolist() == [5, 6, 7, 8, 9]
    assert batch.position_ids.tolist() == [0, 1, 2, 0, 1]
    assert batch.boundaries == (0, 3, 5)
    assert batch.answer_positions.tolist() == [0, 1, 3]
    assert batch.labels.tolist() == [6, 7, 9]
    assert batch.owner.tolist() == [0, 0, 1]
    assert batch.roles == ("forget", "retain")
    assert batch.row_index.tolist() == [4, 2]


def test_tokens_by_role_by_hand() -> None:
    # Answers of one, two, none and one token, in a step of all roles but alternatives.
    rows = [TokenSequence((1, 2), 1), TokenSequence((3, 4, 5), 1), TokenSequence((6,), 1), TokenSequence((7, 8), 1)]
    batch = pack(
        rows, is_forget=[False, True, True, False], is_general=[True, False, False, False], row_index=[9, 0, 1, 5]
    )
    assert batch.roles == ("general", "forget", "forget", "retain")
    assert batch.answers_by_role.tolist() == [1, 2, 3, 0]
    assert batch.sequences_by_role.tolist() == [1, 2, 3, 0]
    assert (batch.answer_counts, batch.sequence_counts) == ((2, 1, 0, 1), (2, 1, 0, 1))
    assert batch.answers_of("forget").tolist() == [1, 2]
    assert batch.answers_of("alternative").tolist() == []
    both = join([batch, batch])
    assert both.answers_of("general").tolist() == [0, 4]
    assert both.sequences_of("forget").tolist() == [1, 2, 5, 6]
    assert (both.answer_counts, both.roles) == ((4, 2, 0, 2), batch.roles * 2)


def test_token_groups_keep_order_and_limit() -> None:
    assert list(token_groups([3, 3, 9, 1, 1], 6)) == [[0, 1], [2], [3, 4]]
    assert list(token_groups([], 6)) == []
