"""One audit: controls, attacks, findings, verdict, files.

Every attack is run on every control: the model before (where the attack has a measure of its own; else that is what
recovery is a share of), the unlearned model, one that never saw the rows, one that is known to hide them, and the
unlearned model again for placebo rows. What each found is kept, so that an audit that was ended goes on.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from letheon.auditing.attack import (
    HIDING,
    HIDING_UNTIL_ROUNDED,
    AnyAttack,
    Attack,
    Knowledge,
    Separated,
    Subject,
)
from letheon.auditing.conclusion import Conclusion, Found, conclude, was_known
from letheon.auditing.controls import Hiding, hiding, hiding_until_rounded, load, make_never
from letheon.auditing.findings import Tried
from letheon.auditing.inputs import AuditInputs, Note, read_audited
from letheon.auditing.knowledge import ask, values_of
from letheon.auditing.outcomes import Asked, Outcomes
from letheon.data.forms import AUTO
from letheon.data.rows import Row
from letheon.data.sequences import tokenise
from letheon.errors import EvaluationError
from letheon.evaluation.in_form import AskedForm, resolve_form
from letheon.processes import from_first, in_turn, on_first
from letheon.progress import Progressed
from letheon.scores.audits import AuditResults
from letheon.settings import AuditSettings
from letheon.signals import finishing
from letheon.storage.files import open_output_folder
from letheon.storage.locks import folder_lock
from letheon.storage.provenance import describe_environment
from letheon.storage.run_folder import (
    AUDIT_RESULTS_FILE,
    AUDITS_FOLDER,
    EXAMPLES_FILE,
    NEVER_FOLDER,
    write_entry,
)

_MOST_NEW_TOKENS = 256
_UNLIMITED = 2**31
_DEPENDS = ("rows", "samples", "max_new_tokens", "seed", "make_never", "dtype")
"""Settings that outcomes depend on, beside what was read."""
_OF_UNLEARNED = ("after", "placebo")
"""Controls that are the unlearned model."""
_HIDING = (HIDING, HIDING_UNTIL_ROUNDED)
_NEVER_KNOWN = "the model before does not know the rows"


def audit(settings: AuditSettings, *, progress: Progressed | None = None, note: Note | None = None) -> AuditResults:
    """Attack an unlearned model, and leave audit/ in `settings.out` with results.json, outcomes and examples.

    Raises:
        LetheonError: models, rows or settings are not usable or do not go together.
    """
    note, tell = note or _ignore, progress or _ignore_stage
    began = time.monotonic()
    inputs = in_turn(lambda: read_audited(settings, note=note))
    folder = settings.out / AUDITS_FOLDER
    with ExitStack() as stack:
        on_first(lambda: stack.enter_context(_held(folder, note)))
        found = _Audit(inputs, folder, tell, note, began).run()
        on_first(lambda: _write(folder, found))
    return found.results


@contextmanager
def _held(folder: Path, note: Note) -> Iterator[None]:
    """Make the folder of an audit and hold it while the block lasts."""
    open_output_folder(folder, advice="choose another --out", private=True)
    with folder_lock(folder, note=note):
        yield


def _write(folder: Path, found: Conclusion) -> None:
    with finishing():
        write_entry(folder, EXAMPLES_FILE, found.examples)
        write_entry(folder, AUDIT_RESULTS_FILE, found.results.to_json())


@dataclass(slots=True)
class _Audit:
    """One audit while it runs."""

    inputs: AuditInputs
    folder: Path
    tell: Progressed
    note: Note
    began: float

    def run(self) -> Conclusion:
        """Run the attacks and return what they come to."""
        settings, inputs = self.inputs.settings, self.inputs
        subjects, how, missing = self._subjects()
        depends = {name: settings.plain()[name] for name in _DEPENDS} | {"packages": describe_environment()["packages"]}
        kept = Outcomes(self.folder, {**inputs.read, **depends})
        asked = self._asked(subjects, kept)
        if was_known(inputs, asked):
            hiding = self._add_hiding(subjects, how, missing)
            asked |= {name: self._asked_of(name, subject, inputs.asked, kept) for name, subject in hiding.items()}
            tried, left_out = self._try_all(subjects, kept)
        else:
            missing |= dict.fromkeys(_HIDING[: 1 + inputs.has_rounding], _NEVER_KNOWN)
            tried, left_out = [], {attack.name: _NEVER_KNOWN for attack in inputs.attacks} | inputs.left_out
        duration_s = time.monotonic() - self.began
        return conclude(inputs, Found(subjects["after"].form, how, missing, asked, tried, left_out, duration_s))

    def _subjects(self) -> tuple[dict[str, Subject], dict[str, str], dict[str, str]]:
        """Load or make the controls but those that hide rows; return them, what each is, and why others are missing."""
        settings, inputs = self.inputs.settings, self.inputs
        self.tell("loading the model before", 0, 0)
        before = load(settings.before, settings, inputs.tokenizer, self.note)
        form = AskedForm(settings.template or AUTO, settings.date, "given" if settings.template else "found by a probe")
        form, _ = resolve_form(form, before.model, before.tokenizer, list(inputs.asked))
        subject = Subject(
            "before",
            before.model,
            before.tokenizer,
            form,
            inputs.given,
            before.model,
            max_new_tokens=settings.max_new_tokens or _longest(inputs, form),
            batch_size=settings.batch_size,
            num_samples=settings.samples,
            seed=settings.seed,
        )
        self.tell("loading the unlearned model", 0, 0)
        after = load(settings.model, settings, inputs.tokenizer, self.note)
        found = {"before": subject, "after": replace(subject, name="after", model=after.model)}
        how, missing = {"before": settings.before, "after": settings.model}, {}
        never = self._never(subject)
        if never is None:
            missing["never"] = "none was given by --never, and none was asked for by --make-never"
        else:
            model = load(never, settings, inputs.tokenizer, self.note).model
            how["never"] = never
            found["never"] = replace(subject, name="never", model=model)
            found = {name: replace(one, reference=model) for name, one in found.items()}
        return found, how, missing

    def _never(self, before: Subject) -> str | None:
        settings, folder = self.inputs.settings, self.folder / NEVER_FOLDER
        if not settings.make_never:
            return settings.never
        if not from_first((folder / "config.json").is_file):
            make_never(
                before,
                self.inputs.given.retain,
                self.inputs.given.text,
                folder,
                source=settings.before,
                tell=self.tell,
            )
        return str(folder)

    def _add_hiding(
        self, subjects: dict[str, Subject], how: dict[str, str], missing: dict[str, str]
    ) -> dict[str, Subject]:
        """Add the controls that hide the rows, what each is and why others are missing; return these controls."""
        made = {}
        for name, hides in self._hiding(subjects["before"]).items():
            if hides.subject is None:
                missing[name] = hides.how
            else:
                made[name], how[name] = hides.subject, hides.how
        subjects |= made
        return made

    def _hiding(self, before: Subject) -> dict[str, Hiding]:
        """Make the models that are known to hide the rows."""
        found = {HIDING: hiding(before, self.inputs.asked, self.tell)}
        if self.inputs.has_rounding:
            found[HIDING_UNTIL_ROUNDED] = hiding_until_rounded(before, self.inputs.asked, self.tell)
        return found

    def _asked(self, subjects: dict[str, Subject], kept: Outcomes) -> dict[str, Asked]:
        """What each control says without an attack; "placebo" is the unlearned model, asked for placebo rows."""
        sides = self._sides(subjects, halves=True)
        return {name: self._asked_of(name, subject, rows, kept) for name, subject, rows in sides}

    def _asked_of(self, name: str, subject: Subject, rows: Sequence[Row], kept: Outcomes) -> Asked:
        asks = partial(self._ask, name, subject, rows)
        return kept.get(f"asked.{name}", Asked, asks, is_of_unlearned=name in _OF_UNLEARNED)

    def _ask(self, name: str, subject: Subject, rows: Sequence[Row]) -> Asked:
        texts = ask(subject, rows, self.tell, stage=f"asking {name}")
        return Asked(values_of(rows, texts), tuple(texts))

    def _sides(self, subjects: dict[str, Subject], *, halves: bool) -> Iterator[tuple[str, Subject, Sequence[Row]]]:
        """Yield each control with the rows that it is attacked for."""
        count = None if halves else self.inputs.num_rows["asked"]
        for name, subject in subjects.items():
            yield name, subject, self.inputs.asked[:count]
        yield "placebo", subjects["after"], self.inputs.placebo[:count]

    def _try_all(self, subjects: dict[str, Subject], kept: Outcomes) -> tuple[list[Tried], dict[str, str]]:
        """Run the attacks, the cheapest first; return what they found, and why others were left out."""
        left_out, tried = self.inputs.left_out, []
        wanted = [attack for attack in self.inputs.attacks if attack.name not in left_out]
        budget, pass_s = self.inputs.settings.budget, 0.0
        for number, attack in enumerate(wanted, 1):
            expected_s = pass_s * attack.passes
            if budget is not None and from_first(partial(self._is_beyond, budget, expected_s)):
                left_out[attack.name] = f"it would have taken the audit beyond its budget of {budget:g} s"
                continue
            self.note(f"attack {number} of {len(wanted)}: {attack.title}")
            began = time.monotonic()
            tried.append(self._try(attack, subjects, kept))
            pass_s = max(pass_s, (time.monotonic() - began) / attack.passes)
        if not tried:
            names: dict[str, list[str]] = {}
            for name, reason in left_out.items():
                names.setdefault(reason, []).append(name)
            reasons = "; ".join(f"{', '.join(of)}: {reason}" for reason, of in names.items())
            raise EvaluationError(f"no attack could be run ({reasons})")
        return tried, left_out

    def _is_beyond(self, budget: float, expected_s: float) -> bool:
        return time.monotonic() - self.began + expected_s > budget

    def _try(self, attack: AnyAttack, subjects: dict[str, Subject], kept: Outcomes) -> Tried:
        began = time.monotonic()

        def tell(stage: str, done: int, total: int) -> None:
            self.tell(f"{attack.name}: {stage}", done, total)

        if isinstance(attack, Attack):
            found = {}
            for name, subject, rows in self._sides(subjects, halves=attack.halves):
                if name not in attack.hidden_in and name in _HIDING:
                    continue
                if name == "before" and attack.measure == "answers":
                    continue
                made = partial(attack.run, subject, rows, tell)
                found[name] = kept.get(f"{attack.name}.{name}", Knowledge, made, is_of_unlearned=name in _OF_UNLEARNED)
            return Tried(attack, knowledge=found, duration_s=time.monotonic() - began)
        separated = {}
        for name, subject in subjects.items():
            if name == HIDING_UNTIL_ROUNDED:
                continue
            judged = partial(attack.run, subject, self.inputs.members, self.inputs.nonmembers, tell)
            separated[name] = kept.get(
                f"{attack.name}.{name}", dict[str, Separated], judged, is_of_unlearned=name in _OF_UNLEARNED
            )
        return Tried(attack, separated=separated, duration_s=time.monotonic() - began)


def _longest(inputs: AuditInputs, form: AskedForm) -> int:
    """The tokens of the longest answer and a quarter more, up to those that the official script generates."""
    rows = (*inputs.asked, *inputs.placebo)
    found = (
        tokenise(row, inputs.tokenizer, template=form.template, date=form.date, max_length=_UNLIMITED) for row in rows
    )
    longest = max(sequence.num_answer_tokens for sequence in found)
    return min(_MOST_NEW_TOKENS, longest + longest // 4 + 1)


def _ignore(_: str) -> None:
    """Hear a note that nobody waits for."""


def _ignore_stage(stage: str, done: int, total: int) -> None:
    """Hear of a stage that nobody waits for."""
