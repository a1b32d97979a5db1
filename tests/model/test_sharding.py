"""Weights in shares, in one process, which gathers from itself alone."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from letheon.cli.main import cli
from letheon.errors import ModelError, SettingsError
from letheon.model.adapters import LoraSettings, attach_lora
from letheon.model.fingerprint import fingerprint
from letheon.model.loading import load_config, load_model, save_model
from letheon.model.shard_loading import check_sharding
from letheon.model.shard_saving import write_sharded
from letheon.model.sharding import group_of, is_sharded, state_of, whole
from letheon.model.taking import take_saved_weights
from small import tiny_model

IDS = torch.arange(4, 24)[None]


@pytest.fixture
def source(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Path:
    """The folder of a model whose head is its embeddings."""
    save_model(tiny_model("olmo", tokenizer), tokenizer, tmp_path / "model")
    return tmp_path / "model"


def sharded(source: Path) -> PreTrainedModel:
    return load_model(str(source), shard=True).model


@pytest.mark.parametrize("architecture", ["olmo", "llama", "gpt2"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_computes_what_the_whole_model_computes(
    architecture: str, dtype: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    save_model(tiny_model(architecture, tokenizer), tokenizer, tmp_path / "model")
    ours, plain = (load_model(str(tmp_path / "model"), dtype=dtype, shard=it).model for it in (True, False))  # type: ignore[arg-type]
    assert torch.equal(ours(IDS).logits, plain(IDS).logits)
    assert fingerprint(ours) == fingerprint(plain)
    assert (ours.device, ours.dtype) == (plain.device, plain.dtype)
    assert ours.config.to_dict() == plain.config.to_dict()
    assert {name: value.shape for name, value in ours.named_parameters()} == {
        name: value.shape for name, value in plain.named_parameters()
    }


def test_weights_that_would_be_widened_become_float32(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    save_model(tiny_model("olmo", tokenizer).half(), tokenizer, tmp_path / "model")
    ours, plain = (
        load_model(str(tmp_path / "model"), dtype="auto", shard=it, device="cpu").model for it in (True, False)
    )
    assert (ours.dtype, plain.dtype) == (torch.float32, torch.float16)
    assert torch.equal(ours(IDS).logits, plain(IDS).logits)


@pytest.mark.parametrize("is_tied", [True, False])
def test_layers_embeddings_and_head_lie_in_shares(
    is_tied: bool, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    model = tiny_model("llama", tokenizer)
    model.config.tie_word_embeddings = is_tied
    save_model(type(model)(model.config), tokenizer, tmp_path / "model")
    found, plain = (load_model(str(tmp_path / "model"), shard=it).model for it in (True, False))
    assert torch.equal(found(IDS).logits, plain(IDS).logits)
    outside = [name for name, value in found.named_parameters() if group_of(value) is None]
    assert outside == ["model.norm.weight"]
    groups = {id(group) for value in found.parameters() if (group := group_of(value)) is not None}
    assert len(groups) == (3 if is_tied else 4)


def test_one_group_is_whole_at_a_time(source: Path) -> None:
    model = sharded(source)
    model(IDS)
    named = dict(model.named_parameters())
    (first, second) = ("model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight")
    stored = load_file(source / "model.safetensors")
    for name, other in ((first, second), (second, first)):
        assert torch.equal(whole(named[name]), stored[name])
        assert named[other].isnan().all()  # whoever reads it without gathering gets nothing that could pass for it
    held = sum(group.share.nbytes for group in {group_of(value) for value in named.values()} if group is not None)
    assert held == sum(value.nbytes for value in named.values())


def test_a_backward_pass_gathers_what_the_forward_pass_let_go(source: Path) -> None:
    gradients = []
    for shard in (True, False):
        model = load_model(str(source), shard=shard).model
        adapted = attach_lora(model, LoraSettings(targets=("all-linear",)), seed=0)
        with torch.no_grad():
            for name, value in adapted.trained().items():
                value.copy_(torch.linspace(-0.1, 0.1, value.numel()).view(value.shape) + len(name) / 1000)
        adapted.model(IDS, labels=IDS).loss.backward()
        gradients.append([parameter.grad for parameter in adapted.parameters()])
    assert all(isinstance(grad, Tensor) and grad.any() for grad in gradients[0])
    assert all(torch.equal(ours, wanted) for ours, wanted in zip(*gradients, strict=True))


@pytest.mark.parametrize("architecture", ["olmo", "gpt2"])
def test_merged_weights_are_written_one_by_one(
    architecture: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    save_model(tiny_model(architecture, tokenizer), tokenizer, tmp_path / "model")
    saved = []
    for shard in (True, False):
        model = load_model(str(tmp_path / "model"), shard=shard).model
        adapted = attach_lora(model, LoraSettings(targets=("all-linear",)), seed=0)
        assert not adapted.is_lost_in(adapted.merged_state())
        with torch.no_grad():
            for value in adapted.trained().values():
                value.fill_(0.01)
        state = adapted.merged_state()
        save_model(adapted.model, tokenizer, tmp_path / f"saved-{shard}", state=state)
        take_saved_weights(adapted)
        with adapted.off():
            logits = adapted.model(IDS).logits
        again = AutoModelForCausalLM.from_pretrained(tmp_path / f"saved-{shard}")
        assert torch.equal(again(IDS).logits, logits)
        saved.append(load_file(tmp_path / f"saved-{shard}" / "model.safetensors"))
    assert saved[0].keys() == saved[1].keys()
    assert all(torch.equal(value, saved[1][name]) for name, value in saved[0].items())


def test_several_files_have_an_index(source: Path, tmp_path: Path) -> None:
    model = sharded(source)
    out = tmp_path / "out"
    out.mkdir()
    write_sharded(model, None, out, most_bytes=40_000)
    index = json.loads((out / "model.safetensors.index.json").read_text(encoding="utf-8"))
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in model.parameters())
    files = sorted(out.glob("*.safetensors"))
    assert len(files) == len(set(index["weight_map"].values())) > 2
    for path in files:
        with safe_open(path, framework="pt") as file:
            assert file.metadata() == {"format": "pt"}
            for name in file.keys():  # noqa: SIM118 - not a mapping
                assert index["weight_map"][name] == path.name
                assert torch.equal(file.get_tensor(name), whole(model.get_parameter(name)))
    assert torch.equal(AutoModelForCausalLM.from_pretrained(out)(IDS).logits, model(IDS).logits)


def test_a_state_is_gathered_as_it_is_asked_for(source: Path) -> None:
    model = sharded(source)
    state = state_of(model)
    stored = load_file(source / "model.safetensors")
    assert set(state) == {*stored, "lm_head.weight"}
    assert all(torch.equal(state[name], value) for name, value in stored.items())
    assert not is_sharded(load_model(str(source)).model)


def edit(source: Path, **changed: Tensor | None) -> None:
    """Give a checkpoint other tensors, by names with "__" for dots, or none."""
    path = source / "model.safetensors"
    tensors = load_file(path)
    for name, value in changed.items():
        tensors.pop(name.replace("__", "."), None)
        if value is not None:
            tensors[name.replace("__", ".")] = value
    save_file(tensors, path, metadata={"format": "pt"})


UP = "model__layers__1__mlp__up_proj__weight"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({UP: None}, r"lack model\.layers\.1\.mlp\.up_proj\.weight"),
        ({UP: torch.zeros(64, 31)}, "are 64 by 31, the configuration says 64 by 32"),
        ({UP: torch.full((64, 32), torch.inf)}, r"model\.layers\.1\.mlp\.up_proj\.weight are not all finite"),
        ({"model__layers__2__mlp__up_proj__weight": torch.zeros(64, 32)}, "3 layers in model.layers"),
        ({UP: None, "layers__1__up": torch.zeros(64, 32)}, "leave out --shard"),
    ],
)
def test_a_checkpoint_that_does_not_fit(changed: dict[str, Tensor | None], message: str, source: Path) -> None:
    edit(source, **changed)
    with pytest.raises(ModelError, match=message):
        sharded(source)


def test_one_process_has_nobody_to_share_with(source: Path, tmp_path: Path) -> None:
    for side in ("forget", "retain"):
        (tmp_path / f"{side}.jsonl").write_text(f'{{"input": "{side}", "output": "b"}}\n', encoding="utf-8")
    rows = ["--forget", str(tmp_path / "forget.jsonl"), "--retain", str(tmp_path / "retain.jsonl")]
    for command in ("unlearn", "evaluate"):
        given = [command, "--model", str(source), *rows, "--out", str(tmp_path / "out"), "--shard"]
        with pytest.raises(SettingsError, match="start them by torchrun --nproc-per-node N -m letheon"):
            cli(given, standalone_mode=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"adapt": "weights"}, "use --adapt lora"),
        ({"dtype": "widened"}, "use --dtype bfloat16"),
        ({"quantise": "nf4"}, "without --quantise"),
    ],
)
def test_what_cannot_be_kept_in_shares(
    given: dict[str, str], message: str, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    settings: dict[str, Any] = {"dtype": "auto", "quantise": None, "adapt": "lora"}
    check_sharding(load_config(str(source)), **settings)
    with pytest.raises(SettingsError, match=message):
        check_sharding(load_config(str(source)), **{**settings, **given})
