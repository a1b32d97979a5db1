"""The general rows of a run: given, or written by the model itself before the first step, and kept in the cache."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerBase

from letheon.data.conversations import Turn
from letheon.data.forms import filled
from letheon.data.general import HOLDOUT, OPENINGS, QUESTIONS, WORDS_REPEATED, repeat_rows
from letheon.data.schedules import GeneralSchedule, Schedule
from letheon.data.sequences import TokenSequence, hash_sequences, leading_special_ids, text_ids
from letheon.devices import kept_random_state
from letheon.engine.engine import Engine
from letheon.engine.reference_cache import load_tensors, save_tensors
from letheon.errors import DataError, ModelError
from letheon.model.loading import LoadedModel, context_length
from letheon.processes import from_first
from letheon.progress import Progressed
from letheon.settings import UnlearnSettings
from letheon.storage.cache import store_path
from letheon.unlearning.inputs import Inputs

AUTO = "auto"
NEW_TOKENS = 128
"""The most tokens that the model writes after one prompt."""
NUM_FROM_NOTHING = 16
"""Texts that the model writes after its beginning-of-sequence token alone, where it has one."""
TOP_P = 0.95
"""Share of the probability that tokens are sampled from (Holtzman et al. 2020, arXiv 1904.09751)."""
RECITED = 0.1
"""Share of the texts that repeat rows from which a model writes little else."""
MOST_OPENINGS = 32
"""Conversations in which what the chat template writes before an answer is held too; it is alike in all."""
SCORED_EVERY = 8
"""Every eighth general row is left out of training, and scored on."""
FORMAT = "letheon.general/1"
_BATCH_SIZE = 32
_SEED = 0
"""Runs of several seeds have their general text in common, so that they can share a model and what is stored of it."""


@dataclass(frozen=True, slots=True)
class GeneralRows:
    """General text and chat of a run; both lists are empty where it has none."""

    trained: list[TokenSequence]
    scored: list[TokenSequence]
    """Those left out of training, or, of fewer than `SCORED_EVERY`, all."""
    notes: tuple[str, ...] = ()
    num_openings: int = 0
    """How many of `trained`, the last of them, are what the chat template writes before an answer."""

    @property
    def sha256(self) -> str:
        """The hash of all of them."""
        return hash_sequences([*self.trained, *self.scored])

    @property
    def num_tokens(self) -> int:
        """Tokens that are trained on, prompts included."""
        return sum(len(sequence.input_ids) for sequence in self.trained)


NO_GENERAL = GeneralRows([], [])


@dataclass(frozen=True, slots=True)
class _Prompt:
    """What the model goes on from; of an answer in a chat the prompt is not trained on."""

    ids: tuple[int, ...]
    is_chat: bool


def general_rows(
    loaded: LoadedModel,
    engine: Engine,
    inputs: Inputs,
    settings: UnlearnSettings,
    *,
    model_fingerprint: str,
    cache_dir: Path | None,
    on_path: Callable[[Path], None] | None = None,
    progress: Progressed | None = None,
) -> GeneralRows:
    """Return the general rows that a run is given, or those that the model as it was writes, with any documents.

    What it wrote is left out, and a note says so, if a share of `RECITED` of it repeats rows. It is found in
    `cache_dir` by all runs of the same model and tokenizer, whatever their seeds; None keeps it in memory only.
    `on_path` learns where it lies before it is made.

    Raises:
        DataError: nothing is left of a text that was asked for once what repeats rows to forget is left out.
        ModelError: the model cannot be asked to write.
        OutputError: what it wrote cannot be kept in `cache_dir`.
    """
    if settings.general is None:
        return NO_GENERAL
    written, texts, notes = list[TokenSequence](), list[str](), tuple[str, ...]()
    if settings.general == AUTO:
        sample = partial(_sample, loaded, engine, settings, progress=progress)
        path = None if cache_dir is None else store_path(cache_dir, _key(loaded, engine, settings, model_fingerprint))
        if path is not None and on_path is not None:
            on_path(path)
        written = from_first(sample if path is None else partial(_kept, path, sample))
        texts = _own_texts(written, inputs.tokenizer, date=settings.date)
        if (reason := _why_not(texts, inputs)) is not None:
            which = " of the model's own" if inputs.general else ""
            notes = (f"no general text{which} under the KL: {reason}; give some by --general FILE",)
            written, texts = [], []
            if not inputs.general:
                return GeneralRows([], [], notes)
    return _chosen(written, texts, inputs, settings, notes=notes)


def with_openings(general: GeneralRows, openings: Sequence[TokenSequence], settings: UnlearnSettings) -> GeneralRows:
    """Return general rows that are trained on with `openings` among them, up to `MOST_OPENINGS` spread over all.

    An opening is what the chat template writes beyond its generation prompt before an answer (an empty think block).
    Users ask with the generation prompt alone, so that the model must still write it; a row's loss counts only after
    it. Nothing is added where the run holds the model to no general text at all.
    """
    if settings.general in (None, HOLDOUT) or not openings:
        return general
    chosen = openings[:: -(-len(openings) // MOST_OPENINGS)]
    note = f"the KL also holds what the chat template writes before an answer, in {len(chosen)} of the rows"
    trained = [*general.trained, *chosen]
    return replace(general, trained=trained, notes=(*general.notes, note), num_openings=len(chosen))


def planned_general(inputs: Inputs, settings: UnlearnSettings) -> GeneralRows:
    """Return the general rows as far as they are known without the model; what it will write is as long as it can get.

    Texts that repeat a row to forget are still among those that it writes.
    """
    if settings.general is None:
        return NO_GENERAL
    if settings.general != AUTO:
        return _chosen([], [], inputs, settings)
    prompts = _prompts(inputs.tokenizer, date=settings.date)
    return _split([*(_sequence(one, [one.ids[-1]] * NEW_TOKENS) for one in prompts), *inputs.general], notes=())


def general_schedule(
    settings: UnlearnSettings, trained: Sequence[TokenSequence], general: GeneralRows, *, schedule: Schedule,
    num_forget: int, num_rows: int,
) -> GeneralSchedule | None:  # fmt: skip
    """Return which general rows each step has; None where there are none.

    A step has as many as `general_batch_size` says. By default they have as many tokens as a step's retain rows, on
    average over the first epoch (its forget rows, where no step has any to keep), and there is at least one.

    `trained` are the sequences of the run's rows and other answers, behind which the general ones are numbered.
    """
    if not general.trained:
        return None
    wanted = settings.general_batch_size or _rows_a_step(trained, general, schedule, num_forget, num_rows)
    return GeneralSchedule(len(trained), len(general.trained), min(wanted, len(general.trained)), settings.seed)


def _rows_a_step(
    trained: Sequence[TokenSequence], general: GeneralRows, schedule: Schedule, num_forget: int, num_rows: int
) -> int:
    num_steps = min(schedule.steps_per_epoch, schedule.num_steps)
    rows = [row for step in range(num_steps) for row in schedule.rows(step)]
    kept = [row for row in rows if num_forget <= row < num_rows] or rows
    a_step = sum(len(trained[row].input_ids) for row in kept) / num_steps
    return max(1, round(a_step * len(general.trained) / general.num_tokens))


def _why_not(texts: Sequence[str], inputs: Inputs) -> str | None:
    """Return why a model is not held to the texts that it wrote; None where it is.

    Short answers to rows to keep say nothing: among those of many rows some are everyday words.
    """
    if not texts:
        return "the model wrote none"
    forget = repeat_rows(texts, [*inputs.forget, *inputs.left_out[0]])
    retain = repeat_rows(texts, [*inputs.retain, *inputs.left_out[1]], least_words=WORDS_REPEATED)
    num_repeats = sum(map(max, forget, retain))
    if num_repeats < RECITED * len(texts):
        return None
    return (
        f"{num_repeats} of {len(texts)} texts that the model wrote unasked repeat rows, so it knows little else, and "
        f"held there it would keep them"
    )


def _chosen(
    written: Sequence[TokenSequence],
    texts: Sequence[str],
    inputs: Inputs,
    settings: UnlearnSettings,
    *,
    notes: tuple[str, ...] = (),
) -> GeneralRows:
    """Leave out what repeats a row to forget, of what was written (`texts`) and what was given, and split the rest."""
    found, source = [*written, *inputs.general], _source(written, inputs, settings)
    given = [_decoded(inputs.tokenizer, one.input_ids) for one in inputs.general]
    repeating = repeat_rows([*texts, *given], [*inputs.forget, *inputs.left_out[0]])
    kept = [one for one, is_repeat in zip(found, repeating, strict=True) if not is_repeat]
    if not kept:
        none_left = f"all {len(found)} texts ({source}) repeat a row to forget"
        if settings.general == AUTO:
            note = f"no general text under the KL: {none_left}; give some by --general FILE"
            return GeneralRows([], [], (*notes, note))
        raise DataError(
            f"general: expected text beside the rows to forget, but {none_left}; give other text by --general FILE, or "
            f"do without by --general none"
        )
    num_tokens = sum(len(one.input_ids) for one in kept)
    left_out = len(found) - len(kept)
    repeats = f"; {left_out} more repeat a row to forget and are left out" if left_out else ""
    said = f"general text under the KL: {len(kept)} texts, {num_tokens:,} tokens, {source}{repeats}"
    return _split(kept, notes=(*notes, said))


def _own_texts(written: Sequence[TokenSequence], tokenizer: PreTrainedTokenizerBase, *, date: str) -> list[str]:
    """Return what the model wrote itself: system message, question or beginning were given to it."""
    prompts = sorted((one.ids for one in _prompts(tokenizer, date=date)), key=len, reverse=True)
    starts = [next((len(ids) for ids in prompts if one.input_ids[: len(ids)] == ids), 0) for one in written]
    return [_decoded(tokenizer, one.input_ids[start:]) for one, start in zip(written, starts, strict=True)]


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=True))


def _source(written: Sequence[TokenSequence], inputs: Inputs, settings: UnlearnSettings) -> str:
    """Return where general rows come from, in words."""
    given = "documents of --holdout" if settings.general in (AUTO, HOLDOUT) else f"from {settings.general}"
    return " and ".join([*(["written by the model itself"] if written else []), *([given] if inputs.general else [])])


def _split(found: Sequence[TokenSequence], *, notes: tuple[str, ...]) -> GeneralRows:
    if len(found) < SCORED_EVERY:
        return GeneralRows(list(found), list(found), notes)
    scored = list(found[SCORED_EVERY - 1 :: SCORED_EVERY])
    trained = [one for place, one in enumerate(found, 1) if place % SCORED_EVERY]
    return GeneralRows(trained, scored, notes)


def _prompts(tokenizer: PreTrainedTokenizerBase, *, date: str) -> list[_Prompt]:
    """Return what the model is asked: questions, beginnings of text, and nothing."""
    chats = _chats(tokenizer, date)
    texts = OPENINGS if chats else (*OPENINGS, *(f"{question}\n" for question in QUESTIONS))
    found = [*(_Prompt(tuple(ids), is_chat=False) for ids in text_ids(tokenizer, texts)), *chats]
    begin = leading_special_ids(tokenizer) or [token for token in [tokenizer.bos_token_id] if token is not None]
    if begin:
        found += [_Prompt(tuple(map(int, begin)), is_chat=False)] * NUM_FROM_NOTHING
    return found


def _chats(tokenizer: PreTrainedTokenizerBase, date: str) -> list[_Prompt]:
    """Return the questions as chat; none where there is no template for it that can be filled in."""
    if not getattr(tokenizer, "chat_template", None):
        return []
    try:
        turns = ([Turn("user", question)] for question in QUESTIONS)
        texts = [filled(tokenizer, one, date=date, where="general", add_generation_prompt=True) for one in turns]
    except DataError:
        return []
    return [_Prompt(tuple(tokenizer(text, add_special_tokens=False).input_ids), is_chat=True) for text in texts]


@torch.no_grad()
def _sample(
    loaded: LoadedModel, engine: Engine, settings: UnlearnSettings, *, progress: Progressed | None
) -> list[TokenSequence]:
    """Sample a text after each prompt from the model as it was; the global random state is left as it was."""
    limit = context_length(loaded.model.config) or 2**31
    prompts = [one for one in _prompts(loaded.tokenizer, date=settings.date) if len(one.ids) + 1 < limit]
    # Prompts of one length together: a batch is padded to its longest.
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place].ids))
    written: dict[int, TokenSequence] = {}
    with engine.adapter_off(), kept_random_state():
        torch.manual_seed(_SEED)
        for start in range(0, len(order), _BATCH_SIZE):
            group = order[start : start + _BATCH_SIZE]
            for place, new in zip(group, _written(loaded, [prompts[i].ids for i in group], limit), strict=True):
                written[place] = _sequence(prompts[place], new)
            if progress is not None:
                progress("writing general text", len(written), len(prompts))
    return [one for _, one in sorted(written.items()) if one.num_answer_tokens]


def _sequence(prompt: _Prompt, new: Sequence[int]) -> TokenSequence:
    return TokenSequence((*prompt.ids, *new), answer_start=len(prompt.ids) if prompt.is_chat else 1)


def _written(loaded: LoadedModel, prompts: Sequence[tuple[int, ...]], limit: int) -> Iterator[list[int]]:
    """Yield what is written after each prompt, with its end."""
    ends = _ends(loaded)
    pad = ends[0] if ends else 0
    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=loaded.model.device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=ids.device)
    config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=TOP_P,
        max_new_tokens=max(min(NEW_TOKENS, limit - width), 1),
        pad_token_id=pad,
        eos_token_id=ends or None,
    )
    try:
        output = cast("Any", loaded.model).generate(input_ids=ids, attention_mask=mask, generation_config=config)
    except (RuntimeError, TypeError, AttributeError, ValueError) as error:
        reason, _, _ = str(error).partition("\n")
        raise ModelError(
            f"general: this {type(loaded.model).__name__} cannot be asked to write text ({type(error).__name__}: "
            f"{reason}); give general text by --general FILE, or do without by --general none"
        ) from error
    for new in output[:, width:].tolist():
        end = next((place for place, token in enumerate(new, 1) if token in ends), len(new))
        yield new[:end]


def _ends(loaded: LoadedModel) -> list[int]:
    found: set[int] = set()
    for settings in (loaded.model.generation_config, loaded.model.config, loaded.tokenizer):
        token = getattr(settings, "eos_token_id", None)
        found |= set() if token is None else set(map(int, token if isinstance(token, (list, tuple)) else [token]))
    return sorted(found)


def _key(loaded: LoadedModel, engine: Engine, settings: UnlearnSettings, model_fingerprint: str) -> str:
    """Return the name of what this model writes on this kind of machine."""
    prompts = [(one.ids, one.is_chat) for one in _prompts(loaded.tokenizer, date=settings.date)]
    described: list[object] = [
        FORMAT,
        model_fingerprint,
        _SEED,
        NEW_TOKENS,
        TOP_P,
        _BATCH_SIZE,
        _ends(loaded),
        prompts,
    ]
    described += [str(engine.model.dtype), engine.model.device.type, torch.__version__]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:32]


def _kept(path: Path, sample: Callable[[], list[TokenSequence]]) -> list[TokenSequence]:
    """Return what lies at `path`; where nothing does, sample it and put it there."""
    held = load_tensors(path)
    if held is not None:
        return _from_tensors(held)
    found = sample()
    save_tensors(_as_tensors(found), path)
    return found


def _as_tensors(sequences: Sequence[TokenSequence]) -> dict[str, Tensor]:
    return {
        "general_ids": torch.tensor([token for one in sequences for token in one.input_ids]),
        "general_lengths": torch.tensor([len(one.input_ids) for one in sequences]),
        "general_starts": torch.tensor([one.answer_start for one in sequences]),
    }


def _from_tensors(held: dict[str, Tensor]) -> list[TokenSequence]:
    pieces = held["general_ids"].split(held["general_lengths"].tolist())
    return [
        TokenSequence(tuple(piece.tolist()), start)
        for piece, start in zip(pieces, held["general_starts"].tolist(), strict=True)
    ]
