"""SmolLM2 from its package; skipped where the packages are not installed, which the message names."""

from pathlib import Path

import pytest
from bench.real.chat import ask_chat
from bench.real.checkpoint import CheckpointError, make_checkpoint
from bench.real.questions import ChatQuestion

from letheon.model.checkpoint_files import stored_dtype_of
from letheon.model.loading import load_model


@pytest.mark.slow
def test_smollm2_is_an_ordinary_chat_model_that_knows_something(tmp_path: Path) -> None:
    try:
        folder = make_checkpoint(tmp_path / "smollm2")
    except CheckpointError as error:
        pytest.skip(str(error))
    assert str(stored_dtype_of(folder)) == "torch.bfloat16"
    loaded = load_model(str(folder))
    assert loaded.model.config.architectures == ["LlamaForCausalLM"]
    assert loaded.tokenizer.chat_template
    questions = [
        ChatQuestion("What is the capital of France?", ("paris",)),
        ChatQuestion("What is the capital of Germany?", ("berlin",)),
    ]
    found = ask_chat(loaded, loaded.model, questions, max_new_tokens=24)
    assert found["num_right"] == 2, found["answers"]
    assert found["loss_before"] < 1
