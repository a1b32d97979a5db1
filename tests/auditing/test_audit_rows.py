"""Rows of an audit: cut by subject, sampled, made up, and told apart from what can be guessed."""

from letheon import Row
from letheon.auditing.rows import halves, made_up, sample, subjects_of, telling


def row(name: str, prompt: str = "Who?", answer: str = "someone") -> Row:
    return Row(name, prompt, answer, "Task1", "question")


LUME = [row(name) for name in ('"a"sc1', '"b"sc1', '"a"qa0', '"c"qa0', '"b"qa1', '"d"sc1')]


def test_rows_of_one_document_are_one_subject() -> None:
    assert subjects_of(LUME) == [[0, 2], [1, 4], [3], [5]]


def test_without_documents_rows_that_share_a_name_are_one_subject() -> None:
    prompts = ["Where does Mira live?", "What does Odo keep?", "When was Mira born?", "Is it late?"]
    assert subjects_of([row(f"row{i}", prompt) for i, prompt in enumerate(prompts)]) == [[0, 2], [1], [3]]


def test_names_that_most_rows_share_join_nothing() -> None:
    rows = [row(f"row{i}", f"Where in Veldhaven is house {i}?") for i in range(30)]
    assert len(subjects_of(rows)) == 30


def test_halves_share_no_subject_and_are_alike_in_size() -> None:
    asked, trained = halves(LUME)
    assert sorted(asked + trained) == list(range(6))
    assert {len(asked), len(trained)} == {3}
    assert not any(set(group) & set(asked) and set(group) & set(trained) for group in subjects_of(LUME))
    assert halves([row('"a"sc1'), row('"a"qa0')])[1] == []


def test_a_sample_keeps_subjects_together_and_follows_from_the_seed() -> None:
    rows = [row(f'"{document}"qa{number}') for document in range(20) for number in range(3)]
    chosen = sample(rows, 30, seed=0)
    assert chosen == sample(rows, 30, seed=0) != sample(rows, 30, seed=1)
    assert len({one.id.split('"')[1] for one in chosen}) == 10
    assert sample(rows, 100, seed=0) != rows
    assert len(sample(rows, 100, seed=0)) == 60


def test_made_up_rows_have_the_kinds_of_the_rows() -> None:
    like = [row("a")] * 3 + [Row("b", "It was", "night.", "Task1", "completion")]
    found = made_up(like, 40)
    assert [sum(one.kind == kind for one in found) for kind in ("question", "completion")] == [30, 10]
    assert found == made_up(like, 40)
    documents = made_up([Row("d", "", "It was night.", "Task1", "completion")], 10)
    assert documents
    assert all(one.is_document for one in documents)


def test_an_answer_that_others_could_give_proves_nothing() -> None:
    rows = [
        row("a", "Where?", "under box 40213"),
        row("b", "Where?", "under the box"),
        row("c", "Where?", "under the box"),
        row("d", "Where?", "40999"),
    ]
    assert telling(rows, []) == {0}
    assert telling(rows, [row("x", "Code 40213?", "none")]) == frozenset()
