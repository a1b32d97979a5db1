"""What an audit reads before it loads weights, checked."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from letheon.auditing.attack import HIDING_UNTIL_ROUNDED, AnyAttack, Attack, Given
from letheon.auditing.registry import attacks, chosen
from letheon.auditing.rows import document_of, made_up, sample
from letheon.data.ends import bare_rows
from letheon.data.forms import AUTO, check_form
from letheon.data.repeats import text_key
from letheon.data.rows import Row, Rows, check_disjoint, hash_rows, read_rows, read_text
from letheon.devices import check_device
from letheon.errors import DataError, EvaluationError, ModelError, SettingsError
from letheon.model.checkpoint_files import check_checkpoint
from letheon.model.companions import local_folder
from letheon.model.loading import check_vocabulary, load_config, load_tokenizer
from letheon.report.files import read_mapping, read_settings
from letheon.settings import AuditSettings
from letheon.storage.fingerprints import hash_checkpoint, hash_values
from letheon.storage.run_folder import FORM_FILE, MODEL_FOLDER, SETTINGS_FILE

Note = Callable[[str], None]

FAILS_ON = {"hidden": "hidden", "not-forgotten": "not forgotten", "unclear": "can't tell"}
"""What --fail-on calls the verdicts."""
MOST_MEMBERS = 1000
"""Rows a side that membership attacks judge, unless more are asked."""
_FEWEST = 4
_OF_RUN = (
    "tokenizer",
    "forget",
    "retain",
    "fields",
    "turns",
    "dtype",
    "device",
    "trust_remote_code",
    "template",
    "date",
)
"""Settings that an audit takes over from its run."""


@dataclass(frozen=True, slots=True)
class AuditInputs:
    """What an audit reads before it loads weights."""

    settings: AuditSettings
    attacks: tuple[AnyAttack, ...]
    asked: tuple[Row, ...]
    """Forget rows, twice as many as an attack asks: the first are asked, attacks that train on half take all."""
    placebo: tuple[Row, ...]
    """As many that no model saw."""
    members: tuple[Row, ...]
    """Forget rows that membership attacks judge: more of them, since each costs one forward pass."""
    nonmembers: tuple[Row, ...]
    """As many rows that no model saw, as far as there are any."""
    given: Given
    tokenizer: PreTrainedTokenizerBase
    num_rows: Mapping[str, int]
    read: Mapping[str, Any]
    """Fingerprints."""

    @property
    def left_out(self) -> dict[str, str]:
        """Attacks that cannot run, and why."""
        reasons = {attack.name: attack.needs(self.given) for attack in self.attacks}
        return {name: reason for name, reason in reasons.items() if reason is not None}

    @property
    def has_rounding(self) -> bool:
        """Whether an attack will run that is shown to work on a model that hides rows until it is rounded."""
        wanted = [attack for attack in self.attacks if isinstance(attack, Attack) and attack.name not in self.left_out]
        return any(HIDING_UNTIL_ROUNDED in attack.hidden_in for attack in wanted)


def settings_of_run(folder: Path, given: Mapping[str, Any]) -> AuditSettings:
    """Return the settings of the audit of a run: what is given, and what the run has.

    Raises:
        EvaluationError: the folder is no finished run's.
        SettingsError: as `AuditSettings.of`.
    """
    recorded = read_settings(folder) if (folder / SETTINGS_FILE).is_file() else {}
    if not recorded:
        raise EvaluationError(
            f"{folder}: expected the folder of a run, with {SETTINGS_FILE} in it, found none; give what `letheon "
            "unlearn` got as --out, or models and rows themselves by --model, --before, --forget, --retain and --out"
        )
    if not (folder / MODEL_FOLDER).is_dir():
        raise EvaluationError(
            f"{folder}: the run has no {MODEL_FOLDER}/ to audit; finish it by the same command with --resume"
        )
    taken = {name: recorded[name] for name in _OF_RUN if recorded.get(name) is not None}
    taken |= {"model": str(folder / MODEL_FOLDER), "before": recorded.get("model"), "out": str(folder)}
    form = read_mapping(folder / FORM_FILE)
    taken |= {name: form[name] for name in ("template", "date") if name in form}
    settings = AuditSettings.of({**taken, **given})
    before = Path(settings.before)
    if (
        "before" not in given
        and not before.is_dir()
        and (before.is_absolute() or before.parts[:1] in ((".",), ("..",)))
    ):
        raise EvaluationError(
            f"{folder}: the model before unlearning, {before}, is not there any more, and an audit compares with it; "
            "give it by --before"
        )
    return settings


def fails_on(settings: AuditSettings, verdict: str) -> bool:
    """Return whether --fail-on names a verdict."""
    return verdict in {FAILS_ON[name] for name in settings.fail_on}


def read_audited(settings: AuditSettings, *, note: Note) -> AuditInputs:
    """Read and check all that an audit reads before it loads weights.

    Raises:
        LetheonError: rows, models or settings are not usable, or do not go together.
    """
    for name in settings.fail_on:
        if name not in FAILS_ON:
            raise SettingsError(f"fail_on: expected some of {', '.join(FAILS_ON)}, got '{name}'")
    if settings.never is not None and settings.make_never:
        raise SettingsError("make_never: a model that never saw the rows is given by --never; leave out one of them")
    if settings.full and settings.attacks:
        raise SettingsError("full: has no effect where --attacks chooses; leave out one of them")
    check_form(settings.template or AUTO)
    check_device(settings.device)
    wanted = tuple(attacks().values()) if settings.full else chosen(settings.attacks)
    tokenizer = _tokenizer(settings)
    sides = {name: _rows(source, settings, tokenizer, note) for name, source in _sources(settings).items()}
    forget, retain, holdout = sides["forget"], sides["retain"], sides.get("holdout")
    check_disjoint(forget, retain)
    if holdout is not None:
        _check_unseen(holdout, forget)
        _check_unseen(holdout, retain)
    if len(forget) < _FEWEST or (holdout is not None and len(holdout) < _FEWEST):
        few = forget if holdout is None or len(forget) < _FEWEST else holdout
        raise DataError(
            f"{few.source}: expected at least {_FEWEST} rows, since fewer give no interval, got {len(few)}; give more"
        )
    text = read_text(settings.text) if settings.text is not None else []
    num = 2 * settings.rows
    asked = tuple(sample(list(forget), num, seed=settings.seed))
    placebo = tuple(sample(list(holdout or made_up(asked, len(asked))), len(asked), seed=settings.seed))
    most = max(num, MOST_MEMBERS)
    members = tuple(sample(list(forget), most, seed=settings.seed))
    nonmembers = tuple(sample(list(holdout or made_up(members, len(members))), most, seed=settings.seed))
    given = Given(
        rows=asked,
        retain=tuple(sample(list(retain), num, seed=settings.seed)),
        unseen=placebo,
        text=text,
        has_original=True,
        has_never=settings.never is not None or settings.make_never,
        has_holdout=holdout is not None,
    )
    num_asked = min(settings.rows, len(asked))
    counts = {name: len(rows) for name, rows in sides.items()} | {
        "asked": num_asked,
        "documents": len(set(map(document_of, asked[:num_asked]))),
        "placebo": len(placebo),
    }
    return AuditInputs(
        settings, wanted, asked, placebo, members, nonmembers, given, tokenizer, counts, _read(settings, sides, text)
    )


def _check_unseen(holdout: Rows, seen: Rows) -> None:
    """Check that no row that a model was trained on is to serve as one that no model saw."""
    places = {text_key(row): place for place, row in enumerate(seen)}
    for place, row in enumerate(holdout):
        found = places.get(text_key(row))
        if found is not None:
            raise DataError(
                f"{holdout.describe(place)}: expected a row that no model saw, but {seen.describe(found)} has the same "
                "prompt and answer; take it out of --holdout"
            )
    check_disjoint(seen, holdout)


def _sources(settings: AuditSettings) -> dict[str, str]:
    found = {"forget": settings.forget, "retain": settings.retain, "holdout": settings.holdout}
    return {name: source for name, source in found.items() if source is not None}


def _rows(source: str, settings: AuditSettings, tokenizer: PreTrainedTokenizerBase, note: Note) -> Rows:
    return bare_rows(read_rows(source, fields=settings.fields, turns=settings.turns, note=note), tokenizer, note=note)


def _tokenizer(settings: AuditSettings) -> PreTrainedTokenizerBase:
    """Return the tokenizer of all controls.

    Raises:
        ModelError: a model is missing, or they have different vocabularies.
    """
    models = {"--before": settings.before, "--model": settings.model, "--never": settings.never}
    there = {flag: source for flag, source in models.items() if source is not None}
    for source in there.values():
        check_checkpoint(source)
    remote = settings.trust_remote_code
    if settings.tokenizer is not None:
        tokenizer = load_tokenizer(settings.tokenizer, trust_remote_code=remote)
    else:
        found = {flag: load_tokenizer(source, trust_remote_code=remote) for flag, source in there.items()}
        tokenizer = found["--before"]
        for flag, other in found.items():
            if other.get_vocab() != tokenizer.get_vocab():
                raise _other_vocabulary(there[flag], settings.before, (len(other), len(tokenizer)), flag=flag)
    for source in there.values():
        check_vocabulary(load_config(source, trust_remote_code=remote), tokenizer, source=source)
    return tokenizer


def _other_vocabulary(source: str, before: str, num_tokens: tuple[int, int], *, flag: str) -> ModelError:
    advice = (
        f"give a --never that was trained with the tokenizer of {before}"
        if flag == "--never"
        else "give the --before that --model was made from"
    )
    return ModelError(
        f"{source}: expected the vocabulary of {before} ({num_tokens[1]} tokens), so that the models can be compared "
        f"on the same tokens, got another one ({num_tokens[0]} tokens); {advice}"
    )


def _read(settings: AuditSettings, sides: Mapping[str, Rows], text: Sequence[str]) -> dict[str, Any]:
    models = {"before": settings.before, "model": settings.model, "never": settings.never}
    return {
        **{f"{name}_sha256": hash_checkpoint(local_folder(source)) for name, source in models.items() if source},
        **{f"{name}_sha256": hash_rows(rows) for name, rows in sides.items()},
        "text_sha256": hash_values(text),
        "template": settings.template,
        "date": settings.date,
    }
