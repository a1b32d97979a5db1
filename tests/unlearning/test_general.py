"""General text under the KL: what it is, that it dilutes nothing, and that it is the same in every attempt."""

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch.nn.functional import kl_div
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from chats import chatty
from letheon import Row, UnlearnSettings
from letheon.cli.main import cli
from letheon.data import general as texts
from letheon.data.general import QUESTIONS, read_general, repeat_rows
from letheon.data.packing import pack
from letheon.data.rows import write_rows
from letheon.data.schedules import GeneralSchedule, MixedSchedule
from letheon.data.sequences import TokenSequence, text_sequence, tokenise_all
from letheon.engine.paths import build_engine
from letheon.engine.reference import build_reference
from letheon.errors import DataError, SettingsError
from letheon.model.adapters import LoraSettings, attach_lora
from letheon.objective.catalogue import get_method
from letheon.objective.methods import Coefficients, resolve
from letheon.objective.parts import general_terms, needs_of
from letheon.training.step import accumulate
from letheon.unlearning import general
from letheon.unlearning.general import GeneralRows, general_schedule, with_openings
from letheon.unlearning.interim import Probes
from letheon.unlearning.planning import Machine, plan_run
from letheon.unlearning.populations import groups_of, run_population
from letheon.unlearning.problem import Problem
from letheon.unlearning.reading import read
from letheon.unlearning.run import unlearn
from running import After, as_flags, events, model_of, run, same, short_run

SENTENCES = ("The sea is wide.", "Bread is baked in an oven.", "A triangle has three sides and three corners.")


@pytest.fixture
def given(tmp_path: Path, rows: list[Row], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Any:
    """Settings of a short run with general text that the model writes."""
    return {**short_run(tmp_path, rows, model, tokenizer), "general": "auto", "keep": "last"}


@pytest.fixture(autouse=True)
def _little_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(general, "NEW_TOKENS", 6)
    monkeypatch.setattr(general, "QUESTIONS", QUESTIONS[:6])
    monkeypatch.setattr(general, "OPENINGS", texts.OPENINGS[:5])


# The term


def problem_of(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[Row], *, path: Any, weight: float | None
) -> Problem:
    """Three forget and three retain rows, and three general sentences of which the last has a prompt."""
    adapted = attach_lora(model, LoraSettings(rank=3, alpha=3), seed=1)
    sentences = [text_sequence(sentence, tokenizer, max_length=99) for sentence in SENTENCES]
    sequences = [*tokenise_all(rows, tokenizer, template="joined", max_length=200), *sentences]
    sequences[-1] = replace(sequences[-1], answer_start=5)
    declared = get_method("low-rank-npo")
    terms = declared.terms(Coefficients(resolve(declared, {}).values))
    terms = (*terms, *general_terms(weight or 0.0))
    probe = pack(sequences, is_forget=[True] * 9, row_index=range(9))
    engine = replace(build_engine(adapted.model, probe, adapter_off=adapted.off), path=path)
    store = build_reference(
        engine, sequences, num_forget_rows=3, num_retain_rows=3, num_general_rows=3, needs=needs_of(terms)
    )
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in adapted.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    schedule = MixedSchedule(6, 4, 0)
    return Problem(
        engine, adapted, rows, sequences, 3, store, terms, schedule, Probes(rows, sequences[:6], 3), None,
        general=GeneralSchedule(6, 3, 2, 0),
    )  # fmt: skip


def gradient(
    problem: Problem, step: list[int], *, max_tokens: int = 10_000, factors: dict[str, float] | None = None
) -> tuple[torch.Tensor, dict[str, Any]]:
    for parameter in problem.adapted.parameters():
        parameter.grad = None
    with problem.engine.running():
        parts, _ = accumulate(problem, step, max_tokens=max_tokens, factors=factors)
    return torch.cat([p.grad.flatten() for p in problem.adapted.parameters() if p.grad is not None]), parts


def naive_kl(problem: Problem, step: list[int]) -> float:
    """Mean over the scored tokens of general rows of KL(before || now), from whole distributions, row by row."""
    found = []
    for row in (row for row in step if row >= 6):
        sequence = problem.sequences[row]
        ids = torch.tensor([sequence.input_ids])
        with torch.no_grad():
            now = problem.adapted.model(ids).logits[0].log_softmax(-1)
            with problem.adapted.off():
                before = problem.adapted.model(ids).logits[0].log_softmax(-1)
        found.append(kl_div(now, before, log_target=True, reduction="none").sum(-1)[sequence.answer_start - 1 : -1])
    return float(torch.cat(found).mean())


@pytest.mark.parametrize("path", ["packed", "padded", "logits"])
def test_the_term_is_the_mean_kl_over_general_tokens(
    path: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[Row]
) -> None:
    problem = problem_of(model, tokenizer, rows, path=path, weight=0.5)
    _, parts = gradient(problem, [0, 4, 6, 8])
    assert parts["general_kl"] == pytest.approx(naive_kl(problem, [0, 4, 6, 8]), rel=1e-4)
    assert naive_kl(problem, [6, 8]) > 0.01
    whole, split = gradient(problem, [0, 4, 6, 8, 7])[0], gradient(problem, [0, 4, 6, 8, 7], max_tokens=20)[0]
    assert torch.allclose(whole, split, rtol=1e-4, atol=1e-6)


def test_general_rows_change_no_other_term_and_add_their_own_gradient(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[Row]
) -> None:
    problem = problem_of(model, tokenizer, rows, path="packed", weight=1.0)
    alone, of_rows = gradient(problem, [0, 1, 4])
    both, of_both = gradient(problem, [0, 1, 4, 6, 7, 8])
    general_alone, of_general = gradient(problem, [6, 7, 8])
    assert {name: of_both[name] for name in of_rows if name != "general_kl"} == pytest.approx(
        {name: value for name, value in of_rows.items() if name != "general_kl"}, rel=1e-5
    )
    assert of_rows["general_kl"] is None
    assert of_general["npo"] is None
    assert torch.allclose(both, alone + general_alone, rtol=1e-4, atol=1e-6)


def test_rows_of_which_no_term_counts_are_left_out(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[Row]
) -> None:
    problem, idle = problem_of(model, tokenizer, rows, path="packed", weight=1.0), {"general_kl": 0.0}
    step, less = problem.rows_of_step(0), problem.rows_of_step(0, idle)
    assert len([row for row in step if row >= 6]) == 2
    assert less == [row for row in step if row < 6]
    assert problem.rows_of_step(0, {"general_kl": 0.5, "npo": 0.0}) == step
    (weightless, _), (without, parts) = gradient(problem, step, factors=idle), gradient(problem, less, factors=idle)
    assert torch.allclose(weightless, without, rtol=1e-4, atol=1e-7)
    assert parts["general_kl"] is None
    # Of rows without a term of their own, terms on other rows may read something.
    assert replace(problem, terms=problem.terms[:-1]).rows_of_step(0, idle) == step


def test_at_the_reference_the_term_is_zero_and_has_no_slope(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[Row]
) -> None:
    problem = problem_of(model, tokenizer, rows, path="packed", weight=1.0)
    with torch.no_grad():
        for name, parameter in problem.adapted.trained().items():
            if "lora_B" in name:
                parameter.zero_()
    slope, parts = gradient(problem, [6, 7, 8])
    assert parts["general_kl"] == pytest.approx(0, abs=1e-5)
    assert float(slope.abs().max()) < 1e-5


# Which text it is


def test_each_general_row_comes_once_before_any_comes_again() -> None:
    schedule = GeneralSchedule(first=10, num_rows=5, per_step=2, seed=3)
    drawn = [row for step in range(5) for row in schedule.rows(step)]
    assert sorted(drawn[:5]) == sorted(drawn[5:]) == [10, 11, 12, 13, 14]
    assert drawn[:5] != drawn[5:]
    assert schedule.rows(4) == GeneralSchedule(10, 5, 2, 3).rows(4)


def rows_a_step(batch_size: int, lengths: tuple[int, int, int], **changed: Any) -> int:
    """How many general rows a step has whose two forget, two retain and eight general rows are so long."""
    forget, retain, general_length = (TokenSequence(tuple(range(length)), 1) for length in lengths)
    trained = [forget, forget, retain, retain]
    settings = UnlearnSettings.of(
        {"model": "m", "forget": "f", "retain": "r", "out": "o", "general": "auto", **changed}
    )
    only_forget = changed.get("schedule") == "forget"
    found = general_schedule(
        settings, trained, GeneralRows([general_length] * 8, []),
        schedule=MixedSchedule(2 if only_forget else 4, batch_size, 0), num_forget=2, num_rows=4,
    )  # fmt: skip
    assert found is not None
    return found.per_step


def test_a_step_has_as_many_general_tokens_as_retain_tokens() -> None:
    # An epoch of one step reads 2 retain rows of 60 tokens: 120 tokens, 6 general rows of 20.
    assert rows_a_step(4, (10, 60, 20)) == 6
    assert rows_a_step(2, (10, 60, 20)) == 3
    assert rows_a_step(4, (10, 5, 20)) == 1
    assert rows_a_step(4, (10, 600, 20)) == 8  # all that there are
    assert rows_a_step(2, (30, 5, 20), schedule="forget") == 3
    assert rows_a_step(4, (10, 60, 20), general_batch_size=2) == 2


def test_a_text_repeats_a_row_by_many_words_on_end_or_its_whole_answer() -> None:
    forget = [
        Row("f1", "Tell me of Mira", "She keeps bees in the village of Harrow", "t", "completion"),
        Row("f2", "Which harbour?", "Veldhaven", "t", "question"),
        Row("f3", "What is the number?", "555-0134", "t", "question"),
        Row("f4", "Who mends nets?", "Oren Pell", "t", "question"),
    ]
    said = [
        "Here keeps bees in the village of Harrow.",  # seven words on end, whatever stands around them
        "Bees in the village of Harrow sleep.",  # six
        "The village of Harrow is small.",  # four
        "We left from Veldhaven.",  # one word, without a digit, is everyday text
        "Call 555-0134!",
        "Call 555-0135!",
        "It was oren pell, who else?",
        "Oren went to Pell.",
    ]
    assert repeat_rows(said, forget) == [True, True, False, False, True, False, True, False]
    assert repeat_rows(said, forget, least_words=6) == [True, True, *[False] * 6]


def test_what_a_model_was_given_to_go_on_from_is_not_taken_for_its_own(tokenizer: PreTrainedTokenizerBase) -> None:
    made = chatty(tokenizer, "gemma")
    prompts = general._prompts(made, date="2024-07-26")
    chat, plain = next(one for one in prompts if one.is_chat), next(one for one in prompts if not one.is_chat)
    own = tuple(made("bees in the village").input_ids)
    written = [TokenSequence((*one.ids, *own), answer_start=1) for one in (chat, plain)]
    assert all(len(made.decode(list(one.input_ids))) > len("bees in the village") for one in written)
    found = general._own_texts([*written, TokenSequence(own, answer_start=1)], made, date="2024-07-26")
    assert [text.strip() for text in found] == ["bees in the village"] * 3


def test_of_documents_every_token_counts_and_of_chats_the_answer(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts, "PIECE_TOKENS", 16)
    made = chatty(tokenizer, "gemma")
    (tmp_path / "g.txt").write_text("The sea is wide.\n\nBread is baked in an oven, and a triangle has three sides.\n")
    asked: Any = {"template": "joined", "date": "2024-07-26", "max_length": 100}
    found = read_general(tmp_path / "g.txt", made, **asked)
    assert {one.answer_start for one in found} == {1}
    assert max(len(one.input_ids) for one in found) <= 16
    assert "oven, and a triangle" in made.decode([token for one in found for token in one.input_ids])
    messages = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Tam"}]
    (tmp_path / "g.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    monkeypatch.setattr(texts, "PIECE_TOKENS", 99)
    (chat,) = read_general(tmp_path / "g.jsonl", made, **asked)
    assert str(made.decode(list(chat.input_ids[chat.answer_start :]))).strip() == "Tam<|end|>"
    assert "<|turn|>user" in str(made.decode(list(chat.input_ids)))


# Whole runs


def test_what_the_model_writes_is_chat_where_it_has_a_template(
    tmp_path: Path, rows: list[Row], tokenizer: PreTrainedTokenizerBase
) -> None:
    from letheon.model.loading import load_model
    from letheon.unlearning.inputs import read_inputs
    from letheon.unlearning.prepare import adapt
    from letheon.unlearning.resolve import resolve_settings
    from small import tiny_model

    made = chatty(tokenizer, "qwen3")
    settings = UnlearnSettings.of({**short_run(tmp_path, rows, tiny_model("llama", made), made), "general": "auto"})
    settings = resolve_settings(settings)
    inputs = read_inputs(settings)
    loaded = load_model(settings.model, tokenizer=inputs.tokenizer)
    adapted = adapt(loaded.model, settings)
    probe = pack(inputs.sequences, is_forget=[True] * 6, row_index=range(6))
    engine = build_engine(adapted.model, probe, adapter_off=adapted.off)
    found = general.general_rows(loaded, engine, inputs, settings, model_fingerprint="m", cache_dir=None)
    again = general.general_rows(loaded, engine, inputs, settings, model_fingerprint="m", cache_dir=None)
    assert found == again
    everything = [*found.trained, *found.scored]
    assert len(found.scored) == len(everything) // 8
    chats = [str(made.decode(list(one.input_ids[: one.answer_start]))) for one in everything if one.answer_start > 1]
    assert set(chats) <= {
        f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n" for question in QUESTIONS[:6]
    }
    assert len(chats) >= 5
    kinds = Counter(one.answer_start > 1 for one in everything)
    assert kinds[False] > general.NUM_FROM_NOTHING  # from nothing, and from the openings
    other = general.general_rows(
        loaded, engine, inputs, settings.model_copy(update={"seed": 1}), model_fingerprint="m", cache_dir=None
    )
    assert other == found  # runs of several seeds share it


def test_a_run_with_general_text_says_so_everywhere(given: Any, tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["unlearn", *as_flags(given)])
    assert result.exit_code == 0, result.output
    log = [json.loads(line) for line in (given["out"] / "log.jsonl").read_text().splitlines()]
    steps = [line for line in log if line["event"] == "step"]
    assert all(line["terms"]["general_kl"] is not None for line in steps)
    assert steps[0]["terms"]["general_kl"] == pytest.approx(0, abs=1e-5)
    assert max(line["terms"]["general_kl"] for line in steps) > 0
    scored = [line["general_kl"] for line in log if line["event"] == "interim"]
    assert all(value > 0 for value in scored)
    assert "written by the model itself" in result.output
    provenance = json.loads((given["out"] / "provenance.json").read_text())
    assert provenance["general"]["source"] == "auto"
    assert provenance["general"]["num_tokens"] > 0
    sha256 = provenance["read"]["general_sha256"]
    assert sha256 in (given["out"] / "run.yaml").read_text()
    assert "general: auto" in (given["out"] / "run.yaml").read_text()
    held = list((tmp_path / "cache" / "reference").glob("*.safetensors"))
    assert len(held) == 2  # what it wrote, and the reference's values
    purged = CliRunner().invoke(cli, ["purge", str(given["out"])])
    assert purged.exit_code == 0, purged.output
    assert not list((tmp_path / "cache" / "reference").glob("*.safetensors"))


@pytest.mark.parametrize(
    "changed",
    [
        {"adapt": "weights", "learning_rate": 1e-3},  # the head is trained too, so its reference is another head
        {"kl": "reverse"},
        {"method": "rmu", "layers": "0:2"},
        {"method": "idk-dpo"},
        {"layers": "1:2", "store_lower": True},
        {"schedule": "alternating"},
        {"validation": 0.34},
    ],
    ids=str,
)
def test_it_goes_with_every_kind_of_run(given: Any, changed: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "g.txt").write_text("\n\n".join(SENTENCES))
    report = run({**given, "general": str(tmp_path / "g.txt"), "epochs": 2, **changed})
    found = [line["terms"]["general_kl"] for line in events(report.folder, "step")]
    assert found[0] == pytest.approx(0, abs=1e-5)
    assert all(value is not None for value in found)
    assert max(found) > 1e-6


def test_without_general_text_nothing_of_it_is_logged(given: Any) -> None:
    report = run({**given, "general": "none"})
    assert all("general_kl" not in line["terms"] for line in events(report.folder, "step"))
    assert all(line["general_kl"] is None for line in events(report.folder, "interim"))


@pytest.mark.slow
def test_it_is_resumed_to_the_same_bytes_with_and_without_the_cache(given: Any, tmp_path: Path) -> None:
    whole = model_of(run(given, out=tmp_path / "whole"))

    def stop() -> None:
        raise KeyboardInterrupt

    for name, cache in (("same", tmp_path / "one"), ("other", tmp_path / "two")):
        out = tmp_path / name
        settings = UnlearnSettings.of({**given, "out": out, "cache_dir": tmp_path / "one"})
        with pytest.raises(KeyboardInterrupt):
            unlearn(settings, observer=After(5, stop))
        assert same(model_of(run(given, out=out, cache_dir=cache, resume=True)), whole)


def test_a_changed_file_is_not_resumed_with(given: Any, tmp_path: Path) -> None:
    path = tmp_path / "general.txt"
    path.write_text("\n\n".join(SENTENCES))
    run(given, general=str(path))
    path.write_text("\n\n".join(SENTENCES[:2]))
    with pytest.raises(SettingsError, match="the general text"):
        run(given, general=str(path), resume=True)


def test_a_file_of_nothing_but_rows_to_forget_is_refused(given: Any, rows: list[Row], tmp_path: Path) -> None:
    write_rows(rows[:2], tmp_path / "g.jsonl")
    with pytest.raises(DataError, match=r"all 2 texts \(from .*g\.jsonl\) repeat a row to forget"):
        run(given, general=str(tmp_path / "g.jsonl"))


@pytest.mark.parametrize(("share", "is_held"), [(0.05, True), (0.2, False)])
def test_a_model_that_recites_its_rows_is_not_held_to_what_it_writes(
    share: float, is_held: bool, given: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []

    def some_repeat(found: list[str], rows: list[Row], *, least_words: int = 1) -> list[bool]:
        asked.append((len(rows), least_words))
        return [place < round(share * len(found)) for place in range(len(found))]

    monkeypatch.setattr(general, "repeat_rows", some_repeat)
    run(given, epochs=1)
    notes = [line["message"] for line in events(given["out"], "note")]
    left_out = [re.match(r"no general text under the KL: \d+ of \d+ texts .* repeat rows", note) for note in notes]
    assert any(left_out) is not is_held
    assert all((line["terms"]["general_kl"] is not None) == is_held for line in events(given["out"], "step"))
    assert asked[:2] == [(3, 1), (3, 6)]  # of rows to keep, too, but not their short answers


@pytest.mark.parametrize("text", ["auto", "none"])
def test_what_the_template_writes_before_an_answer_is_held_too(
    text: str, rows: list[Row], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(general, "_why_not", lambda *_: "it recites")
    given = {**short_run(tmp_path, rows, model, chatty(tokenizer, "qwen3")), "template": "chat", "general": text}
    found = run(given, epochs=1).provenance.get("general", {})
    assert (found.get("num_texts"), found.get("num_openings")) == ((0, len(rows)) if text == "auto" else (None, None))
    notes = [line["message"] for line in events(given["out"], "note")]
    held = f"the KL also holds what the chat template writes before an answer, in {len(rows)} of the rows"
    assert (held in notes) == (text == "auto")
    held_in = [line["terms"].get("general_kl") for line in events(given["out"], "step")]
    assert all((value is not None) == (text == "auto") for value in held_in)


def test_openings_are_added_to_what_is_trained_on_alone_and_few_of_them() -> None:
    made = GeneralRows([TokenSequence((1, 2), 1)], [TokenSequence((3, 4), 1)], ("so",))
    openings = [TokenSequence((5, 6, number), 1) for number in range(100)]
    asked = UnlearnSettings.of({"model": "m", "forget": "f", "retain": "r", "out": "o", "general": "auto"})
    found = with_openings(made, openings, asked)
    assert found.trained == [*made.trained, *openings[::4]]
    assert found.scored == made.scored
    assert found.notes[0] == "so"
    assert with_openings(made, [], asked) == made
    for other in (None, "holdout"):
        assert with_openings(made, openings, asked.model_copy(update={"general": other})) == made


@pytest.mark.parametrize("recites", [False, True])
def test_the_documents_that_choose_are_held_too(
    recites: bool, given: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if recites:
        monkeypatch.setattr(general, "_why_not", lambda *_: "it recites")
    file = tmp_path / "unseen.jsonl"
    file.write_text("".join(json.dumps({"document": text}) + "\n" for text in SENTENCES), encoding="utf-8")
    run({**given, "epochs": 1}, holdout=str(file), dial="none")
    notes = [line["message"] for line in events(given["out"], "note")]
    expected = "documents of --holdout" if recites else "written by the model itself and documents of --holdout"
    assert any(note.startswith("general text under the KL") and note.endswith(expected) for note in notes)
    assert (
        any(note.startswith("no general text of the model's own under the KL: it recites") for note in notes) is recites
    )
    assert all(line["terms"]["general_kl"] is not None for line in events(given["out"], "step"))


def test_settings_of_general_text_need_it(given: Any) -> None:
    with pytest.raises(SettingsError, match="general_weight: has no effect without --general"):
        run(given, general="none", general_weight=2.0)
    with pytest.raises(DataError, match=r"missing\.txt: there is no such file"):
        run(given, general="missing.txt")


@pytest.mark.slow
def test_runs_of_a_population_have_the_general_text_that_each_has_alone(given: Any, tmp_path: Path) -> None:
    changes: tuple[dict[str, Any], ...] = ({"rank": 2}, {"rank": 3, "general_weight": 0.5, "general_batch_size": 1})
    together = [UnlearnSettings.of({**given, **one, "out": tmp_path / f"t{i}"}) for i, one in enumerate(changes)]
    assert groups_of(together) == [[0, 1]]
    assert groups_of([together[0], together[1].model_copy(update={"seed": 5})]) == [[0, 1]]
    run_population(together)
    for place, one in enumerate(changes):
        alone = run(given, **one, out=tmp_path / f"a{place}")
        expected, found = (
            [line["terms"]["general_kl"] for line in events(folder, "step")]
            for folder in (alone.folder, tmp_path / f"t{place}")
        )
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-6)


@pytest.mark.slow
def test_the_plan_counts_its_tokens_and_stored_bytes(given: Any, tmp_path: Path) -> None:
    path = tmp_path / "general.txt"
    path.write_text("\n\n".join(SENTENCES))
    machine = Machine("cpu", 2**36)
    plans = []
    for source in ("none", str(path)):
        settings = UnlearnSettings.of({**given, "general": source, "end_of_sequence": "none"})
        plans.append(plan_run(*read(settings, get_method(settings.method)), machine=machine))
    report = run(given, general=str(path), end_of_sequence="none")
    assert report.num_tokens == plans[1].demand.trained.read > plans[0].demand.trained.read
    stored = [a.bytes for a in plans[1].allocations if (a.name, a.place) == ("values of the reference", "disk")]
    assert report.provenance["reference_store_bytes"] == pytest.approx(stored[0], rel=0.02)
