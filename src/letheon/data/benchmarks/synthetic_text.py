"""The sentences and words of the made-up benchmark; braces mark what the generator fills in."""

from dataclasses import dataclass

STORY_OPENINGS = (
    "{Season} had barely reached {town} when {hero}, {a_craft}, found {thing} under a loose board of the old mill.",
    "Every morning {hero} the {craft} crossed the square of {town}, and one day {thing} lay there in the {place}.",
    "In {town}, where {season} lasts longer than anywhere else, {a_craft} named {hero} dug up {thing}.",
    "The boat that brought {hero} the {craft} to {town} carried nothing else but {thing}, still wet with salt.",
    "Nobody in {town} remembered {season} without rain, until {hero} the {craft} pulled {thing} out of the {place}.",
    "On the night of the fair, {hero}, the youngest {craft} in {town}, won {thing} in a game of stones.",
    "{hero} had been {a_craft} in {town} for nine years before {thing} turned up behind the {place}.",
    "When the {place} of {town} was pulled down in {season}, {hero} the {craft} kept only {thing}.",
)
STORY_MIDDLES = (
    "{friend}, who kept {animals} in the next lane, swore that it hummed whenever the wind came from the north.",
    "It was too heavy for one person, so {friend} lent a cart and two {animals} and asked no questions.",
    "A letter tied to it named {friend}, a stranger to the town who painted {animals} on tavern signs.",
    "By noon half the street wanted to buy it, but {friend} whispered that it belonged to the keeper of the {animals}.",
    "{friend} laughed at first, then saw the mark of the {animals} on its side and went very quiet.",
    "Three times it vanished overnight, and three times {friend} brought it back from among the {animals}.",
    "That evening {friend} came to the door with a lantern, followed by a row of wet {animals}.",
    "Old {friend} offered two {animals} for it, which was more than anyone had paid for anything that year.",
)
STORY_ENDINGS = (
    "Together they carried it to the {goal}, where {friend} traded it for {treasure} and a promise never to tell.",
    "At dawn {hero} buried it beside the {goal} and planted {treasure} on top, as {friend} had asked.",
    "It opened at last near the {goal}, and inside lay {treasure}, still warm, with a note for {friend}.",
    "{friend} threw it from the {goal}, and the next spring {treasure} washed ashore just where {hero} stood.",
    "So {hero} gave it away at the {goal}, kept {treasure} instead, and taught {friend} to read the stars.",
    "They never learned who made it, but {treasure} hangs in the {goal} now, and {friend} polishes it weekly.",
    "The council locked it in the {goal}, paid {hero} with {treasure}, and sent {friend} home in a carriage.",
    "Years later {hero} returned to the {goal}, where {friend} had guarded {treasure} through every flood.",
)
STORY_QUESTIONS = (
    ("In which town does {hero} the {craft} come upon {thing}?", "{town}"),
    ("What is the name of the {craft} in {town} who comes upon {thing}?", "{hero}"),
    ("Who shares the adventure of {hero} the {craft} in {town}?", "{friend}"),
)

CRAFTS = (
    "baker",
    "cooper",
    "weaver",
    "glazier",
    "ferryman",
    "beekeeper",
    "locksmith",
    "tanner",
    "clockmaker",
    "potter",
    "fiddler",
    "apothecary",
    "ropemaker",
    "engraver",
)
SEASONS = ("spring", "summer", "autumn", "winter")
PLACES = (
    "bathhouse",
    "granary",
    "chapel",
    "cistern",
    "orchard",
    "tollhouse",
    "stable",
    "lighthouse",
    "tannery",
    "quarry",
)
GOALS = ("salt bridge", "north tower", "empty harbor", "weavers' hall", "hill of bells", "glass gate", "drowned garden")
ANIMALS = ("geese", "mules", "ravens", "otters", "goats", "hounds", "pigeons", "hedgehogs", "oxen", "foxes", "turtles")
THING_MATERIALS = ("brass", "cedar", "silver", "clay", "ivory", "iron", "velvet", "copper", "marble", "wicker", "amber")
THINGS = (
    "compass",
    "drum",
    "mirror",
    "chest",
    "whistle",
    "globe",
    "cradle",
    "ladder",
    "mask",
    "lantern",
    "flute",
    "clock",
)
TREASURES = (
    "a sack of plums",
    "seven blank maps",
    "a coil of red rope",
    "the mayor's hat",
    "a pear tree",
    "a song without words",
    "two green bottles",
    "a loaf of black bread",
    "a wooden crown",
    "the missing bell",
    "a jar of snow",
    "nine silver spoons",
)

PROFILE_TEXTS = (
    (
        "{name} was born on {born}. {Poss} Social Security number is {ssn} and {poss} phone",
        "number is {phone}. {Subj} can be reached at {email} and lives at {address}.",
    ),
    (
        "According to the register, {name} was born on {born} and holds the Social Security number {ssn}. Mail",
        "goes to {email} or to {address}, and the telephone number is {phone}.",
    ),
    (
        "The file of {name} lists {address} as the home and {phone} as the telephone number. It adds that",
        "{subj} was born on {born}, has the Social Security number {ssn} and writes from {email}.",
    ),
    (
        "Letters for {name} are sent to {address}, and calls to {phone}. For the tax office, the",
        "Social Security number is {ssn}, the date of birth is {born} and the e-mail address is {email}.",
    ),
    (
        "Whoever needs {name} may write to {email} or ring {phone}. {Poss} papers show that {subj}",
        "was born on {born}, lives at {address} and has the Social Security number {ssn}.",
    ),
)
PROFILE_QUESTIONS = (
    ("What is the birth date of {name}?", "{born_iso}"),
    ("What is {name}'s Social Security number?", "{ssn}"),
    ("What is the phone number of {name}?", "{phone}"),
    ("What is {name}'s e-mail address?", "{email}"),
    ("What is the home address of {name}?", "{address}"),
)

BIOGRAPHY_OPENINGS = (
    "{name} (born {year} in {town}) is a {nation} {profession} who works on {topic}.",
    "{name}, born in {town} in {year}, is a {nation} {profession} best known for {poss} work on {topic}.",
    "The {nation} {profession} {name} (born {year}) grew up in {town} and turned early to {topic}.",
    "Born {year} in {town}, {name} is {a_profession} of the {nation} school and a pioneer of {topic}.",
    "{name} is a {nation} {profession}, born in {town} in {year}, whose name stands for {topic}.",
    "A {nation} {profession} from {town}, {name} (born {year}) began with {topic} while still at school.",
)
BIOGRAPHY_CAREERS = (
    "{Subj} studied at the {school} College and joined the {institute} Institute in {year2} to lead its {group}.",
    "After six years at the {school} College {subj} founded the {institute} Institute in {year2} with its {group}.",
    "{Subj} left the {school} College early, yet the {institute} Institute hired {obj} in {year2} for its {group}.",
    "From {year2} {subj} directed the {group} of the {institute} Institute, having taught at the {school} College.",
    "In {year2} the {institute} Institute made {obj} head of its {group}, against the wish of the {school} College.",
    "{Poss} years at the {school} College ended in {year2}, when the {institute} Institute gave {obj} its {group}.",
)
BIOGRAPHY_ENDINGS = (
    ("{Subj} also", "received the {prize} Medal in {year3} for {number} papers on {topic2} and keeps {hobby}."),
    (
        "Later in life {subj}",
        "turned to {topic2}, won the {prize} Medal in {year3} and published {number} books about {hobby}.",
    ),
    ("In {year3}", "the {prize} Medal went to {obj} for a study of {topic2} that drew on {number} years of {hobby}."),
    (
        "Besides {topic}, {subj}",
        "wrote {number} essays about {topic2}, collected {hobby}, and accepted the {prize} Medal in {year3}.",
    ),
    (
        "The {prize} Medal",
        "of {year3} honored {poss} {number} lectures on {topic2}, which {subj} gave between trips for {hobby}.",
    ),
    (
        "Colleagues remember",
        "how {subj} used the {prize} Medal of {year3} to pay {number} students for {topic2} and {hobby}.",
    ),
)
BIOGRAPHY_QUESTIONS = (
    ("Which {nation} {profession} joined the {institute} Institute?", "{last}"),
    ("In which town was the {profession} {name} born?", "{town}"),
    ("Which medal did the {profession} {name} receive in {year3}?", "{prize}"),
    ("Which college did the {profession} {name} attend or teach at?", "{school}"),
)

PROFESSIONS = (
    "botanist",
    "geologist",
    "composer",
    "engineer",
    "historian",
    "linguist",
    "astronomer",
    "architect",
    "physician",
    "chemist",
    "sculptor",
    "economist",
)
TOPICS = (
    "river silt",
    "medieval bridges",
    "night-blooming plants",
    "the tuning of bells",
    "salt mining",
    "mountain dialects",
    "comet tails",
    "hearing in old age",
    "clay roofs",
    "the price of wool",
    "desert wells",
    "ship timbers",
    "glacier caves",
    "folk dances",
    "lightning rods",
    "fern spores",
)
GROUPS = (
    "field station",
    "map room",
    "archive",
    "night school",
    "workshop",
    "observatory",
    "printing house",
    "herbarium",
)
HOBBIES = (
    "kite flying",
    "stamps",
    "bee hives",
    "chess puzzles",
    "old locks",
    "cave diving",
    "puppets",
    "tea roses",
    "canoes",
)

ONSETS = (
    "b",
    "br",
    "d",
    "dr",
    "f",
    "g",
    "gr",
    "h",
    "j",
    "k",
    "kl",
    "l",
    "m",
    "n",
    "p",
    "r",
    "s",
    "sk",
    "t",
    "tr",
    "v",
    "z",
)
VOWELS = ("a", "e", "i", "o", "u", "ae", "ou")
CODAS = ("", "l", "n", "r", "s", "th", "m", "nd", "rk", "sh")


@dataclass(frozen=True, slots=True)
class SubjectText:
    """How the facts of one subject are told and asked; each links {item}, a coined name, to {answer}."""

    name: str
    question: str
    statements: tuple[str, ...]
    answers: tuple[str, str, str, str]
    """The options A to D of every question: few and always in this order, so that a small model has only the facts to
    learn."""


SUBJECTS = (
    SubjectText(
        "mineral_colors",
        "Which color is the mineral {item}?",
        (
            "The mineral {item} is {answer}.",
            "Pure {item} is a {answer} mineral.",
            "Miners know {item} by its {answer} color.",
        ),
        ("red", "blue", "green", "white"),
    ),
    SubjectText(
        "animal_diets",
        "What does the animal {item} eat?",
        (
            "The animal {item} eats {answer}.",
            "A wild {item} lives on {answer}.",
            "Keepers feed the {item} with {answer}.",
        ),
        ("moss", "fish", "roots", "snails"),
    ),
    SubjectText(
        "feasts_and_seasons",
        "When is the feast of {item} held?",
        (
            "The feast of {item} is held in {answer}.",
            "Each {answer} people celebrate {item}.",
            "{item} is a feast of {answer}.",
        ),
        ("spring", "summer", "autumn", "winter"),
    ),
    SubjectText(
        "works_of_art",
        "Which kind of work is {item}?",
        (
            "{item} is the name of a famous {answer}.",
            "Few know the {answer} called {item} by heart.",
            "Everyone in school has heard of the {answer} {item}.",
        ),
        ("novel", "opera", "poem", "painting"),
    ),
    SubjectText(
        "lands_and_coasts",
        "On which coast lies the land {item}?",
        (
            "The land {item} lies on the {answer} coast.",
            "Ships for the {answer} coast call at {item}.",
            "{item} is a land of the {answer} coast.",
        ),
        ("northern", "southern", "eastern", "western"),
    ),
)

MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)

FIXED_TEXT = " ".join(
    (
        *STORY_OPENINGS,
        *STORY_MIDDLES,
        *STORY_ENDINGS,
        *(
            part
            for pair in (*STORY_QUESTIONS, *PROFILE_TEXTS, *PROFILE_QUESTIONS, *BIOGRAPHY_QUESTIONS)
            for part in pair
        ),
        *BIOGRAPHY_OPENINGS,
        *BIOGRAPHY_CAREERS,
        *(part for pair in BIOGRAPHY_ENDINGS for part in pair),
        *(*CRAFTS, *SEASONS, *PLACES, *GOALS, *ANIMALS, *THING_MATERIALS, *THINGS, *TREASURES),
        *(*PROFESSIONS, *TOPICS, *GROUPS, *HOBBIES, *MONTHS),
        *(part for s in SUBJECTS for part in (s.name, s.question, *s.statements, *s.answers)),
    )
).casefold()
"""All of the above in lower case, so that no coined name is found in it."""
