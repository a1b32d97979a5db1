"""General text and chat, on which a run holds the model where it was: what a model is asked for it, what is read of it.

None of it is a row of the run. What repeats a row to forget is left out, since a model held there would keep the row.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from letheon.data.forms import CHAT
from letheon.data.repeats import whole_text
from letheon.data.rows import Row, read_rows, read_text
from letheon.data.sequences import TokenSequence, text_ids, tokenise_all

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PIECE_TOKENS = 256
"""Longest piece of a general text; a longer conversation ends there."""
MOST_TOKENS = 65_536
"""Of a longer file so many tokens are used, evenly drawn: each costs a stored vector of the model's width."""
WORDS_REPEATED = 6
"""A text that shares so many words on end with a row to forget repeats it."""
_UNLIMITED = 2**31
_SHORTEST_ANSWER = 2
"""Words of a shorter answer that count as repeated wherever they stand; one word would meet everyday text."""

HOLDOUT = "holdout"
"""The name of the documents that a run chooses by, where these are its general text."""

QUESTIONS = (
    "What is the capital of France?",
    "How does a bicycle stay upright?",
    "Why is the sky blue?",
    "What is the difference between weather and climate?",
    "Explain photosynthesis in simple words.",
    "How do I boil an egg?",
    "Write a short poem about the sea.",
    "Give me three tips for sleeping better.",
    "What is a prime number?",
    "Solve 12 times 15 and show the steps.",
    "If a train travels 60 miles in 1.5 hours, what is its average speed?",
    "What does a computer's memory do?",
    "Write a Python function that returns the larger of two numbers.",
    "What is a variable in programming?",
    "Translate 'good morning, my friend' into Spanish.",
    "Summarise the story of Cinderella in two sentences.",
    "Who wrote Romeo and Juliet?",
    "What caused the First World War?",
    "Name the planets of the solar system.",
    "How far away is the Moon?",
    "What is gravity?",
    "Why do leaves change colour in autumn?",
    "How does a vaccine work?",
    "What are the symptoms of a cold?",
    "How much water should I drink in a day?",
    "Suggest a simple dinner with rice and vegetables.",
    "How do I bake bread?",
    "What is inflation in economics?",
    "How does a bank make money?",
    "Write an email asking a colleague to move a meeting to Friday.",
    "Write a polite reply to a late invoice.",
    "How can I prepare for a job interview?",
    "What makes a good leader?",
    "Give me a list of five hobbies that cost little.",
    "What is the best way to learn a new language?",
    "How do I change a flat tyre?",
    "What is the difference between a crocodile and an alligator?",
    "How do birds fly?",
    "Why do cats purr?",
    "Tell me something interesting about whales.",
    "What is the largest desert in the world?",
    "Which languages are spoken in Switzerland?",
    "Describe a walk through a forest.",
    "Tell me a joke.",
    "What is democracy?",
    "What is the purpose of a constitution?",
    "Explain the rules of football briefly.",
    "How does a car engine work?",
    "What is renewable energy?",
    "How do plants take up water?",
    "What is the meaning of the word 'serendipity'?",
    "Correct this sentence: 'She don't like apples.'",
    "What is the past tense of 'to bring'?",
    "Give a synonym for 'happy'.",
    "Is seven greater than four?",
    "What should I pack for a weekend by the sea?",
    "How do I calm down before an exam?",
    "Who are you?",
    "Can you help me with my homework?",
    "Thank you for your help!",
    "Who was Marie Curie?",
    "Where was Mozart born?",
    "When did the Berlin Wall fall?",
    "Who painted the Mona Lisa?",
    "What is Albert Einstein known for?",
    "Who invented the telephone?",
    "Tell me about Nelson Mandela.",
    "What do we know about Cleopatra?",
    "In which country is Mount Everest?",
    "What is the capital of Japan?",
    "How many people live in Canada?",
    "Which river flows through London?",
    "What currency is used in India?",
    "Where can I find the Statue of Liberty?",
    "How many continents are there?",
    "How many minutes are in an hour?",
    "What comes after Thursday?",
    "What colour do you get from blue and yellow?",
    "What is the opposite of early?",
    "What is the plural of mouse?",
    "How do you spell 'necessary'?",
    "Which animal is the tallest?",
    "What do cows eat?",
    "What is a young dog called?",
    "How many wheels does a bicycle have?",
    "What is glass made of?",
    "At what temperature does water boil?",
    "What is salt chemically?",
    "What does DNA stand for?",
    "Which gas do we breathe in?",
    "What is the largest organ of the human body?",
    "How long does a pregnancy last?",
    "What is 25 percent of 80?",
    "Add 17 and 26.",
    "What is the square root of 81?",
    "Convert 10 kilometres into miles.",
    "Sort these numbers: 9, 2, 7, 4.",
    "What is the next number: 2, 4, 8, 16?",
    "Name three fruits.",
    "List the seasons of the year.",
    "Name a famous composer.",
    "Name two countries in Africa.",
    "What is the name of the longest river in South America?",
    "What is a smartphone used for?",
    "What is the phone number for emergencies in Europe?",
    "What is an email address made of?",
    "How do I choose a safe password?",
    "How do I open a bank account?",
    "What is a contract?",
    "What does a lawyer do?",
    "What is the job of a nurse?",
    "How do I write a letter of complaint?",
    "Write a birthday greeting for a friend.",
    "Write a short story about a lost key.",
    "Write one sentence about winter.",
    "Invent a name for a small bakery.",
    "Say hello in three languages.",
    "Translate 'thank you' into German.",
    "Put this sentence into the past: 'I walk to school.'",
    "Is this sentence positive or negative: 'I love this song.'",
    "What is a good book for a rainy day?",
    "Recommend a film for the family.",
    "What is jazz?",
    "How do you play chess?",
    "What are the Olympic Games?",
    "What is the difference between a fruit and a vegetable?",
    "Why do we dream?",
    "Why is exercise good for you?",
)
"""Everyday questions, on nothing in particular; asked as chat, or as plain text where there is no chat template."""

OPENINGS = (
    "The",
    "In the beginning of the",
    "It was",
    "Most people",
    "In recent years,",
    "According to the",
    "When I was",
    "One of the most important",
    "The history of",
    "There are many",
    "For example,",
    "She looked at",
    "The following",
    "How to",
    "As a result,",
    "On Monday",
)
"""Beginnings of text on nothing in particular."""


def read_general(
    path: str | Path, tokenizer: "PreTrainedTokenizerBase", *, template: str, date: str, max_length: int
) -> list[TokenSequence]:
    """Read general text, every token of which counts, or rows and conversations, of which the answers do.

    A .txt holds documents separated by blank lines; any other file is read as rows are. Documents are cut into pieces
    of at most `PIECE_TOKENS` tokens. Rows are rendered as chat where the tokenizer has a chat template, else in the
    form `template`; what is longer than `max_length` is cut off. Of more than `MOST_TOKENS` an even draw is returned.

    Raises:
        DataError: the file is not usable.
    """
    rows = () if Path(path).suffix.lower() == ".txt" else read_rows(path)
    texts = [row.answer for row in rows if row.is_document] if rows else read_text(path)
    form = CHAT if getattr(tokenizer, "chat_template", None) else template
    asked = [row for row in rows if not row.is_document]
    chats = tokenise_all(asked, tokenizer, template=form, max_length=_UNLIMITED, date=date)
    cut = [one.ended(_UNLIMITED).cut(min(PIECE_TOKENS, max_length)) for one in chats]
    pieces = [piece for ids in text_ids(tokenizer, texts) for piece in _pieces(ids, min(PIECE_TOKENS, max_length))]
    return _drawn([one for one in (*cut, *pieces) if one.num_answer_tokens])


def repeat_rows(texts: Iterable[str], rows: Iterable[Row], *, least_words: int = 1) -> list[bool]:
    """Return of each text whether it repeats a row.

    A text repeats a row that shares `WORDS_REPEATED` words on end with it, or that has its whole shorter answer (of one
    word: if that has a digit) of at least `least_words`. Case and punctuation around words do not count.
    """
    runs = {run for row in rows for run in _telling_runs(row) if len(run) >= least_words}
    lengths = sorted({len(run) for run in runs})
    return [any(run in runs for length in lengths for run in _runs(_words(text), length)) for text in texts]


def _telling_runs(row: Row) -> Iterator[tuple[str, ...]]:
    yield from _runs(_words(whole_text(row)), WORDS_REPEATED)
    answer = _words(row.answer)
    tells = len(answer) >= _SHORTEST_ANSWER or any(character.isdigit() for character in row.answer)
    if answer and len(answer) < WORDS_REPEATED and tells:
        yield tuple(answer)


def _runs(words: Sequence[str], length: int) -> Iterator[tuple[str, ...]]:
    return (tuple(words[start : start + length]) for start in range(len(words) - length + 1))


def _words(text: str) -> list[str]:
    stripped = (word.strip(".,;:!?\"'()[]*") for word in text.casefold().split())
    return [word for word in stripped if word]


def _pieces(ids: Sequence[int], length: int) -> Iterator[TokenSequence]:
    for start in range(0, len(ids), length):
        yield TokenSequence(tuple(ids[start : start + length]), answer_start=1)


def _drawn(sequences: Sequence[TokenSequence]) -> list[TokenSequence]:
    stride = max(1, -(-sum(len(one.input_ids) for one in sequences) // MOST_TOKENS))
    return list(sequences[::stride])
