"""Conversations as rows: which messages are read, and which of them are a prompt and its answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from letheon.data.records import check_text, describe_type
from letheon.errors import DataError, nearest

Role = Literal["system", "user", "assistant"]
Answers = Literal["last", "every"]
"""Which turns of the assistant are answers of rows: the last of a conversation, or every one."""

_ROLES: Mapping[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
}
_KEYS = (("role", "content"), ("from", "value"))
_UNREAD = ("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking")
"""What a message may hold beside its text; a chat template would write it, so that leaving it out changes the text."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation."""

    role: Role
    text: str


@dataclass(frozen=True, slots=True)
class Exchange:
    """A prompt, its answer, and the conversation before them; a document has no prompt."""

    turns: tuple[Turn, ...]
    prompt: str
    answer: str


def read_turns(value: object, column: str, where: str) -> tuple[Turn, ...]:
    """Return the messages of a conversation, each {"role", "content"} or ShareGPT's {"from", "value"}.

    Saved data sets may hold an object of lists in place of a list of objects. A content is a text, or a list of parts
    {"type": "text", "text": ...}, which are joined. A message may be empty.

    Raises:
        DataError: `value` is no list of messages, or one of them is of another role or holds more than text.
    """
    if isinstance(value, dict) and _are_lists(list(value.values())):
        value = [dict(zip(value, message, strict=True)) for message in zip(*value.values(), strict=True)]
    if not isinstance(value, list) or not value:
        got = "an empty list" if value == [] else describe_type(value)
        raise DataError(f"{where}: expected a list of messages in column '{column}', got {got}")
    return tuple(_turn(message, f"{where}, message {number} of '{column}'") for number, message in enumerate(value, 1))


def is_conversation(value: object) -> bool:
    """Whether a value is meant as messages: a list whose first item is an object."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def exchanges(
    turns: Sequence[Turn], *, answers: Answers, column: str, where: str, begin: int = 0
) -> tuple[list[Exchange], int]:
    """Return the rows of a conversation, and how many turns are in none of them.

    A row is a turn of the user with the turn of the assistant that follows it; all before them is its conversation.
    "last" takes the last turn of the assistant, "every" each that answers the user, from turn `begin` on. What follows
    the last answer is left out, and so is, as an answer, a turn of the assistant that does not follow the user's. A
    conversation that consists of one turn of the assistant is a document.

    Raises:
        DataError: there is no answer, the last turn of the assistant does not follow the user's, or the text of a
            prompt or answer is empty.
    """
    spoken = [place for place, turn in enumerate(turns) if turn.role == "assistant" and place >= begin]
    if len(turns) == 1 and spoken:
        return [Exchange((), "", _text_at(turns, 0, column, where))], 0
    if not spoken:
        raise DataError(
            f"{where}: expected a turn of the assistant in column '{column}', found only "
            f"{' and '.join(dict.fromkeys(turn.role for turn in turns[begin:])) or 'none'}; take the row out"
        )
    places = spoken[-1:] if answers == "last" else spoken
    chosen = [place for place in places if place and turns[place - 1].role == "user"]
    if not chosen:
        before = turns[places[-1] - 1].role if places[-1] else "nothing"
        raise DataError(
            f"{where}: expected a turn of the user before that of the assistant in message {places[-1] + 1} of "
            f"'{column}', found {before}; correct the conversation or take it out"
        )
    found = [
        Exchange(tuple(turns[: p - 1]), _text_at(turns, p - 1, column, where), _text_at(turns, p, column, where))
        for p in chosen
    ]
    passed_over = [place for place in places if place < chosen[-1] and place not in chosen]
    return found, len(turns) - 1 - chosen[-1] + len(passed_over)


def _text_at(turns: Sequence[Turn], place: int, column: str, where: str) -> str:
    text = turns[place].text
    if not text.strip():
        raise DataError(f"{where}: message {place + 1} of '{column}' is empty; give it some text or take the row out")
    return text


def _are_lists(columns: Sequence[object]) -> bool:
    return all(isinstance(column, list) for column in columns) and len({len(c) for c in columns}) == 1  # type: ignore[arg-type]


def _turn(message: object, where: str) -> Turn:
    if not isinstance(message, dict):
        raise DataError(f"{where}: expected an object with role and content, got {describe_type(message)}")
    keys = next((keys for keys in _KEYS if keys[0] in message and keys[1] in message), None)
    if keys is None:
        found = ", ".join(str(name) for name in list(message)[:10]) or "nothing"
        raise DataError(f"{where}: expected role and content, or from and value, found {found[:200]}")
    unread = next((name for name in _UNREAD if message.get(name)), None)
    if unread is not None:
        raise DataError(f"{where}: holds '{unread}', and only texts are read; write it into the text or take it out")
    return Turn(_role(message[keys[0]], keys[0], where), _content(message[keys[1]], keys[1], where))


def _role(value: object, key: str, where: str) -> Role:
    role = _ROLES.get(value) if isinstance(value, str) else None
    if role is None:
        shown = f"'{value[:60]}'{nearest(value, _ROLES)}" if isinstance(value, str) else describe_type(value)
        raise DataError(
            f"{where}: expected {', '.join(_ROLES)} as '{key}', got {shown}; messages of tools and of other roles are "
            "not read, so take the row out"
        )
    return role


def _content(value: object, key: str, where: str) -> str:
    if not isinstance(value, list):
        return check_text(value, key, where, may_be_empty=True)
    for part in value:
        if not isinstance(part, dict) or part.get("type") != "text":
            kind = f"a part of type '{str(part.get('type'))[:60]}'" if isinstance(part, dict) else describe_type(part)
            raise DataError(f"{where}: expected parts of type 'text' in '{key}', got {kind}; only texts are read")
    return "".join(check_text(part.get("text"), key, where, may_be_empty=True) for part in value)
