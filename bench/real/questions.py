"""Everyday questions with one right answer each, which say whether a model still knows what it knew."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ChatQuestion:
    """A question of general knowledge, and what a right answer contains: any one of these words."""

    text: str
    answers: tuple[str, ...]


CHAT_QUESTIONS = (
    ChatQuestion("What is the capital of Italy?", ("rome",)),
    ChatQuestion("How many days are in a week?", ("seven", "7")),
    ChatQuestion("What colour is a ripe banana?", ("yellow",)),
    ChatQuestion("What do bees make?", ("honey",)),
    ChatQuestion("Which planet is called the red planet?", ("mars",)),
    ChatQuestion("What is frozen water called?", ("ice",)),
    ChatQuestion("Which ocean is the largest?", ("pacific",)),
    ChatQuestion("What is the opposite of hot?", ("cold",)),
    ChatQuestion("Which language do most people in Brazil speak?", ("portuguese",)),
    ChatQuestion("How many legs does a spider have?", ("eight", "8")),
    ChatQuestion("What is the capital of Spain?", ("madrid",)),
    ChatQuestion("What is the capital of England?", ("london",)),
    ChatQuestion("What is the capital of Russia?", ("moscow",)),
    ChatQuestion("What is the capital of Germany?", ("berlin",)),
    ChatQuestion("What is the capital of China?", ("beijing",)),
    ChatQuestion("What is the capital of Egypt?", ("cairo",)),
    ChatQuestion("What is the capital of Greece?", ("athens",)),
    ChatQuestion("Which country has Lisbon as its capital?", ("portugal",)),
    ChatQuestion("On which continent is Kenya?", ("africa",)),
    ChatQuestion("On which continent is Poland?", ("europe",)),
    ChatQuestion("In which city is the Eiffel Tower?", ("paris",)),
    ChatQuestion("In which country are the pyramids of Giza?", ("egypt",)),
    ChatQuestion("In which country is the city of Mumbai?", ("india",)),
    ChatQuestion("Which is the largest planet of the solar system?", ("jupiter",)),
    ChatQuestion("Which star does the Earth go round?", ("sun",)),
    ChatQuestion("What is the chemical formula of water?", ("h2o",)),
    ChatQuestion("What is the chemical symbol of gold?", ("au",)),
    ChatQuestion("Which gas do plants take from the air?", ("carbon",)),
    ChatQuestion("Which metal do magnets attract?", ("iron",)),
    ChatQuestion("What is the hardest natural material?", ("diamond",)),
    ChatQuestion("What does a thermometer measure?", ("temperature",)),
    ChatQuestion("How many months are in a year?", ("twelve", "12")),
    ChatQuestion("How many hours are in a day?", ("24",)),
    ChatQuestion("How many seconds are in a minute?", ("sixty", "60")),
    ChatQuestion("How many days are in a leap year?", ("366",)),
    ChatQuestion("How many sides does a triangle have?", ("three", "3")),
    ChatQuestion("How many sides does a square have?", ("four", "4")),
    ChatQuestion("How many sides does a hexagon have?", ("six", "6")),
    ChatQuestion("How many legs does a dog have?", ("four", "4")),
    ChatQuestion("How many legs does an insect have?", ("six", "6")),
    ChatQuestion("How many fingers are on one hand?", ("five", "5")),
    ChatQuestion("What is 2 plus 2?", ("four", "4")),
    ChatQuestion("What is 5 times 3?", ("fifteen", "15")),
    ChatQuestion("What is 10 minus 4?", ("six", "6")),
    ChatQuestion("What is 12 divided by 3?", ("four", "4")),
    ChatQuestion("What is 7 plus 6?", ("thirteen", "13")),
    ChatQuestion("What is half of 10?", ("five", "5")),
    ChatQuestion("What colour is grass?", ("green",)),
    ChatQuestion("What colour is snow?", ("white",)),
    ChatQuestion("What colour is the sky on a clear day?", ("blue",)),
    ChatQuestion("What colour is blood?", ("red",)),
    ChatQuestion("What colour is coal?", ("black",)),
    ChatQuestion("What is the opposite of up?", ("down",)),
    ChatQuestion("What is the opposite of big?", ("small", "little")),
    ChatQuestion("What is the opposite of day?", ("night",)),
    ChatQuestion("What is the opposite of happy?", ("sad", "unhappy")),
    ChatQuestion("What is the opposite of fast?", ("slow",)),
    ChatQuestion("What is the opposite of true?", ("false",)),
    ChatQuestion("What is the opposite of empty?", ("full",)),
    ChatQuestion("What is a young cat called?", ("kitten",)),
    ChatQuestion("What is a young cow called?", ("calf",)),
    ChatQuestion("Which animal barks?", ("dog", "dogs")),
    ChatQuestion("Which animal gives us wool?", ("sheep",)),
    ChatQuestion("Which animal is called the king of the jungle?", ("lion",)),
    ChatQuestion("Which animal has a trunk?", ("elephant", "elephants")),
    ChatQuestion("Which animal spins a web?", ("spider", "spiders")),
    ChatQuestion("Which is the largest animal in the ocean?", ("whale",)),
    ChatQuestion("Which birds cannot fly and live in Antarctica?", ("penguin", "penguins")),
    ChatQuestion("What do hens lay?", ("eggs", "egg")),
    ChatQuestion("What is cheese made from?", ("milk",)),
    ChatQuestion("What is wine made from?", ("grapes", "grape")),
    ChatQuestion("What is bread made from?", ("flour", "wheat")),
    ChatQuestion("What do we use to cut paper?", ("scissors",)),
    ChatQuestion("What do people wear on their feet?", ("shoes", "socks", "boots")),
    ChatQuestion("Which instrument has 88 keys?", ("piano",)),
    ChatQuestion("Which organ pumps blood through the body?", ("heart",)),
    ChatQuestion("Which organ do we think with?", ("brain",)),
    ChatQuestion("What do we see with?", ("eyes", "eye")),
    ChatQuestion("What do we hear with?", ("ears", "ear")),
    ChatQuestion("Which season comes after winter?", ("spring",)),
    ChatQuestion("Which is the first month of the year?", ("january",)),
    ChatQuestion("Which month comes after April?", ("may",)),
    ChatQuestion("Which day comes after Monday?", ("tuesday",)),
    ChatQuestion("In which month is Christmas?", ("december",)),
    ChatQuestion("Who was the first president of the United States?", ("washington",)),
    ChatQuestion("Who was the first man on the Moon?", ("armstrong",)),
    ChatQuestion("Who wrote Hamlet?", ("shakespeare",)),
    ChatQuestion("Who developed the theory of evolution?", ("darwin",)),
    ChatQuestion("Who painted The Starry Night?", ("gogh",)),
    ChatQuestion("Who discovered penicillin?", ("fleming",)),
    ChatQuestion("Which language do people speak in Mexico?", ("spanish",)),
    ChatQuestion("Which language do people speak in France?", ("french",)),
    ChatQuestion("What is the currency of Japan?", ("yen",)),
    ChatQuestion("What is the currency of the United Kingdom?", ("pound", "sterling")),
    ChatQuestion("Which sport is played at Wimbledon?", ("tennis",)),
    ChatQuestion("What is the largest country in the world?", ("russia",)),
    ChatQuestion("What is the highest mountain in the world?", ("everest",)),
    ChatQuestion("What is the longest river in Africa?", ("nile",)),
    ChatQuestion("What is steam made of?", ("water",)),
    ChatQuestion("What is a person who flies a plane called?", ("pilot",)),
)
"""None of them is among those that `--general auto` asks, so no run was held to an answer."""
SMALL_QUESTIONS = 10
"""How many of them the small model of `--small` has learnt, and is asked."""


def is_right(question: ChatQuestion, text: str) -> bool:
    """Return whether a text holds one of the right answers as a word."""
    words = "".join(letter if letter.isalnum() else " " for letter in text.lower()).split()
    return any(answer in words for answer in question.answers)
