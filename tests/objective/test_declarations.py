"""What the terms of a method say of themselves is what their losses do."""

import pytest
import torch

from letheon.data.packing import pack
from letheon.data.sequences import TokenSequence
from letheon.objective.catalogue import METHODS
from letheon.objective.methods import Coefficients, Method, Value, resolve
from letheon.objective.parts import Term, compose
from letheon.objective.values import RunLosses, TokenValues, roles_of


def reads_the_reference(method: Method) -> bool:
    """Whether the loss has a gradient by the reference's log-probabilities of the answers, which nothing else has."""
    rows = [TokenSequence((0, 1, 2), 1)] * 3
    batch = pack(rows, is_forget=[True, False, False], is_alternative=[False, False, True], row_index=range(3))
    num_tokens, of_two = len(batch.labels), torch.zeros(2, 3)
    values = TokenValues(
        log_probs=torch.full((num_tokens,), -1.0),
        reference_log_probs=torch.full((num_tokens,), -1.0, requires_grad=True),
        labels=batch.labels,
        kl=torch.zeros(2),
        logits=of_two,
        reference_logits=of_two,
        activations=torch.zeros(num_tokens, 3),
        reference_activations=of_two,
        reference_norm=1.0,
        run_losses=RunLosses(forget=torch.ones(1), general=torch.ones(1), row_index=batch.row_index),
    )
    return compose(terms_with(method), values, roles_of(batch)).total.requires_grad


def terms_with(method: Method, **given: Value) -> tuple[Term, ...]:
    layer: dict[str, Value] = {method.layer: 0} if method.layer else {}
    return method.terms(Coefficients({**resolve(method, {}).values, **method.runs[0], **layer, **given}))


@pytest.mark.parametrize("name", METHODS)
def test_terms_declare_whether_they_read_the_reference(name: str) -> None:
    method = METHODS[name]
    assert any(term.reads_reference for term in terms_with(method)) is reads_the_reference(method)


def test_a_kl_of_the_answers_alone_reads_the_reference() -> None:
    found = {kind: terms_with(METHODS["kl-min"], kl=kind)[-1].reads_reference for kind in ("forward", "gold")}
    assert found == {"forward": False, "gold": True}
