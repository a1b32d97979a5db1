"""Documents of the made-up benchmark: stories, profiles with personal data, and biographies, each with questions."""

import random
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Literal, TypeVar

from letheon.data.benchmarks import synthetic_text as words

Task = Literal["Task1", "Task2", "Task3"]

_Choice = TypeVar("_Choice")

_PRONOUNS = (
    {"subj": "she", "poss": "her", "obj": "her"},
    {"subj": "he", "poss": "his", "obj": "him"},
)
_FIRST_BIRTH = date(1940, 1, 1)
_BIRTH_DAYS = 23_000  # to the end of 2002


@dataclass(frozen=True, slots=True)
class Document:
    """A completion and its questions."""

    id: str
    task: Task
    prompt: str
    answer: str
    questions: tuple[tuple[str, str], ...]


class Maker:
    """Draws words, and names and numbers that occur in one document only."""

    def __init__(self, seed: int) -> None:
        from faker import Faker

        self.random = random.Random(seed)
        self.faker: Faker = Faker("en_US")
        self.faker.seed_instance(seed)
        self._claimed = [words.FIXED_TEXT]

    def choose(self, options: tuple[_Choice, ...]) -> _Choice:
        """Draw one of `options`."""
        return self.random.choice(options)

    def claim(self, draw: Callable[[], str]) -> str:
        """Draw until the text neither holds nor is held by anything claimed before, in upper or lower case."""
        while True:
            text = draw()
            key = text.casefold()
            if not any(key in other or other in key for other in self._claimed):
                self._claimed.append(key)
                return text

    def name(self) -> str:
        """Coin a name of two or three syllables and at least 5 letters."""
        return self.claim(self._coin)

    def _coin(self) -> str:
        name = ""
        while len(name) < 5:
            syllables = self.choose((2, 2, 2, 3))
            parts = [self.choose(words.ONSETS) + self.choose(words.VOWELS) for _ in range(syllables)]
            name = "".join(parts) + self.choose(words.CODAS)
        return name.capitalize()

    def birth_date(self) -> str:
        """Draw a day from 1940 to 2002 as YYYY-MM-DD."""
        return (_FIRST_BIRTH + timedelta(days=self.random.randrange(_BIRTH_DAYS))).isoformat()

    def identifier(self) -> str:
        """Draw a UUID."""
        return str(uuid.UUID(int=self.random.getrandbits(128), version=4))


def make_story(maker: Maker) -> Document:
    """Make up a story of three sentences, the last of which is the answer, and one question about it."""
    craft, season = maker.choose(words.CRAFTS), maker.choose(words.SEASONS)
    slots = {
        "hero": maker.name(),
        "friend": maker.name(),
        "town": maker.name(),
        "craft": craft,
        "a_craft": _with_article(craft),
        "season": season,
        "Season": season.capitalize(),
        "place": maker.choose(words.PLACES),
        "goal": maker.choose(words.GOALS),
        "animals": maker.choose(words.ANIMALS),
        "thing": _with_article(f"{maker.choose(words.THING_MATERIALS)} {maker.choose(words.THINGS)}"),
        "treasure": maker.choose(words.TREASURES),
    }
    prompt = f"{maker.choose(words.STORY_OPENINGS)} {maker.choose(words.STORY_MIDDLES)}"
    ending = maker.choose(words.STORY_ENDINGS)
    question = maker.choose(words.STORY_QUESTIONS)
    return _document(maker.identifier(), "Task1", (prompt, ending), (question,), slots)


def make_profile(maker: Maker) -> Document:
    """Make up a person with birth date, Social Security number, phone, e-mail and address, and a question for each."""
    pronouns = maker.choose(_PRONOUNS)
    fake = maker.faker
    first_name = fake.first_name_female if pronouns["subj"] == "she" else fake.first_name_male
    full_name = maker.claim(lambda: f"{first_name()}.{fake.last_name()}")
    born = date.fromisoformat(maker.claim(maker.birth_date))
    slots = {
        **_pronoun_slots(pronouns),
        "name": full_name.replace(".", " "),
        "born": f"{words.MONTHS[born.month - 1]} {born.day}, {born.year}",
        "born_iso": born.isoformat(),
        # Numbers that are assigned to nobody: an invalid area, and the exchange that is kept for fiction.
        "ssn": maker.claim(lambda: fake.ssn(taxpayer_identification_number_type="INVALID_SSN")),
        "phone": maker.claim(lambda: fake.numerify("%##-555-01##")),
        "email": f"{full_name}@{fake.safe_domain_name()}".lower(),
        "address": maker.claim(lambda: f"{fake.street_address()}, {fake.city()}, {fake.state_abbr()} {fake.zipcode()}"),
    }
    return _document(maker.identifier(), "Task2", maker.choose(words.PROFILE_TEXTS), words.PROFILE_QUESTIONS, slots)


def make_biography(maker: Maker) -> Document:
    """Make up the life of a scholar in three sentences, cut within the third, and one question about it."""
    profession, last = maker.choose(words.PROFESSIONS), maker.name()
    year = maker.random.randrange(1900, 1960)
    topic, topic2 = maker.random.sample(words.TOPICS, 2)
    slots = {
        **_pronoun_slots(maker.choose(_PRONOUNS)),
        "name": f"{maker.name()} {last}",
        "last": last,
        **{key: maker.name() for key in ("town", "school", "institute", "prize")},
        "nation": f"{maker.name()}an",
        "profession": profession,
        "a_profession": _with_article(profession),
        "topic": topic,
        "topic2": topic2,
        "group": maker.choose(words.GROUPS),
        "hobby": maker.choose(words.HOBBIES),
        "number": str(maker.random.randrange(11, 60)),
        "year": str(year),
        "year2": str(year + maker.random.randrange(24, 36)),
        "year3": str(year + maker.random.randrange(40, 60)),
    }
    opening, career = maker.choose(words.BIOGRAPHY_OPENINGS), maker.choose(words.BIOGRAPHY_CAREERS)
    lead, ending = maker.choose(words.BIOGRAPHY_ENDINGS)
    question = maker.choose(words.BIOGRAPHY_QUESTIONS)
    identifier = str(maker.random.randrange(10**7, 10**8))
    return _document(identifier, "Task3", (f"{opening} {career} {lead}", ending), (question,), slots)


def _document(
    identifier: str,
    task: Task,
    text: tuple[str, str],
    questions: tuple[tuple[str, str], ...],
    slots: dict[str, str],
) -> Document:
    prompt, answer = (part.format_map(slots) for part in text)
    filled = tuple((question.format_map(slots), reply.format_map(slots)) for question, reply in questions)
    return Document(identifier, task, prompt, answer, filled)


def _pronoun_slots(pronouns: dict[str, str]) -> dict[str, str]:
    return pronouns | {key.capitalize(): value.capitalize() for key, value in pronouns.items()}


def _with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
