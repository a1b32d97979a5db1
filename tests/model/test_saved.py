"""What a run leaves: the tensors of the model that it came from, and not that model itself."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from letheon import Row
from letheon.errors import ModelError
from letheon.model.adapters import LoraSettings, attach_lora
from letheon.model.loading import load_model, save_model
from letheon.model.weights import train_weights
from running import run, short_run
from small import tiny_model

LAYER = "model.layers.1.mlp.down_proj.weight"


def without(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if name != LAYER}


def with_a_stranger(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**state, "model.layers.1.mlp.base_layer.weight": torch.zeros(3, 3)}


def with_another_shape(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**state, LAYER: state[LAYER][:, 1:]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without, f"would lack {LAYER}"),
        (with_a_stranger, "would have no place for model.layers.1.mlp.base_layer.weight"),
        (with_another_shape, f"would have another shape of {LAYER}"),
    ],
)
@pytest.mark.parametrize("is_from_disk", [True, False])
def test_a_model_without_the_tensors_of_its_source_is_not_written(
    change: Any, message: str, is_from_disk: bool, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    model = tiny_model("llama", tokenizer)
    if is_from_disk:
        save_model(model, tokenizer, tmp_path / "base")
        model = load_model(str(tmp_path / "base"), device="cpu").model
    with pytest.raises(ModelError, match=message):
        save_model(model, tokenizer, tmp_path / "made", state=change(dict(model.state_dict())))
    assert {path.name for path in tmp_path.iterdir()} <= {"base"}


def test_a_checkpoint_with_more_than_is_read_can_be_saved(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    # Older checkpoints hold buffers that are computed now, and heads beside the one that is tied.
    model = tiny_model("llama", tokenizer)
    buffers = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    model.save_pretrained(tmp_path / "base", state_dict={**model.state_dict(), **buffers})
    loaded = load_model(str(tmp_path / "base"), tokenizer=tokenizer, device="cpu").model
    save_model(loaded, tokenizer, tmp_path / "made")
    again = load_model(str(tmp_path / "made"), device="cpu").model
    assert torch.equal(again.state_dict()[LAYER], model.state_dict()[LAYER])


def test_merging_refuses_names_that_the_plain_model_has_not(model: PreTrainedModel) -> None:
    adapter = attach_lora(model, LoraSettings(), seed=0)
    model.register_buffer("stranger", torch.zeros(2))
    with pytest.raises(ModelError, match="not have the tensors of the original one: stranger differ"):
        adapter.merged_state()


@pytest.mark.parametrize(("size", "is_lost"), [(1e-12, True), (1e-1, False), (0.0, False)])
@pytest.mark.parametrize("adapt", ["lora", "weights"])
def test_what_is_lost_in_rounding(size: float, is_lost: bool, adapt: str, tokenizer: PreTrainedTokenizerBase) -> None:
    model = tiny_model("llama", tokenizer)
    torch.nn.Module.to(model, torch.bfloat16)
    adapted: Any = (
        attach_lora(model, LoraSettings(targets=("all-linear",)), seed=0)
        if adapt == "lora"
        else train_weights(model, modules=("mlp",), layers=None)
    )
    with torch.no_grad():
        for parameter in adapted.parameters():
            parameter.add_(size)
    adapted.update_model()
    assert adapted.is_lost_in(adapted.merged_state()) == is_lost


@pytest.mark.parametrize("also", [{}, {"method": "gd", "adapt": "weights"}, {"method": "task-vector"}])
def test_a_run_whose_change_is_lost_ends_in_an_error_and_keeps_what_it_trained(
    also: Mapping[str, Any], tmp_path: Path, rows: list[Row], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    given = short_run(tmp_path, rows, model, tokenizer) | {"learning_rate": 1e-9, "dtype": "bfloat16"} | dict(also)
    with pytest.raises(ModelError, match=r"equals the original one.*rounding to bfloat16.*--dtype float32"):
        run(given)
    out = tmp_path / "run"
    assert not (out / "model").exists()
    assert (out / "adapter" / "adapter_model.safetensors").is_file() == ("adapt" not in also)
    assert list((out / "checkpoints").glob("step-*"))
