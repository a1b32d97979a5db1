"""Checkpoints: what they hold beside a model's weights, and weights that the configuration has no place for."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled, RepositoryNotFoundError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from architecture_table import ARCHITECTURES, CASES, random_model
from letheon.errors import ModelError
from letheon.model.loading import load_config, load_model, load_tokenizer, save_model
from small import tiny_model


@pytest.fixture
def target(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Path:
    """A Llama of two layers."""
    save_model(tiny_model("llama", tokenizer), tokenizer, tmp_path / "target")
    return tmp_path / "target"


def configure(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def add_weights(folder: Path, names: list[str]) -> None:
    path = folder / "model.safetensors"
    extra: dict[str, Tensor] = {name: torch.zeros(4) for name in names}
    save_file({**load_file(path), **extra}, path, metadata={"format": "pt"})


def resaved(folder: Path, tmp_path: Path) -> Path:
    loaded = load_model(str(folder), device="cpu")
    save_model(loaded.model, loaded.tokenizer, tmp_path / "again")
    return tmp_path / "again"


def test_fewer_layers_than_the_weights_hold_are_refused(target: Path) -> None:
    configure(target, num_hidden_layers=1)
    with pytest.raises(
        ModelError,
        match=r"the weights hold 2 layers in model\.layers, the configuration says 1; config\.json and weights belong",
    ):
        load_model(str(target))


def test_fewer_layers_than_a_checkpoint_of_the_trunk_holds_are_refused(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    model = tiny_model("llama", tokenizer)
    model.save_pretrained(tmp_path / "trunk", state_dict=model.state_dict())
    tokenizer.save_pretrained(tmp_path / "trunk")
    path = tmp_path / "trunk" / "model.safetensors"
    save_file({k.removeprefix("model."): v for k, v in load_file(path).items()}, path, metadata={"format": "pt"})
    configure(tmp_path / "trunk", num_hidden_layers=1)
    with pytest.raises(ModelError, match=r"the weights hold 2 layers in model\.layers, the configuration says 1"):
        load_model(str(tmp_path / "trunk"))


@pytest.mark.parametrize(
    "name", ["model.layers.1.self_attn.q_proj.bias", "model.layers.0.self_attn.q_norm.weight", "lm_head.bias"]
)
def test_weights_inside_a_part_that_has_no_place_for_them_are_refused(name: str, target: Path) -> None:
    add_weights(target, [name])
    with pytest.raises(
        ModelError, match=rf"the weights hold {name}, which LlamaForCausalLM does not have in this conf"
    ):
        load_model(str(target))


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["model.layers.0.self_attn.rotary_emb.inv_freq", "model.layers.1.self_attn.rotary_emb.cos_cached"], []),
        (
            ["v_head.summary.weight", "v_head.summary.bias"],
            ["the weights also hold v_head, which are not part of LlamaForCausalLM"],
        ),
        (
            ["model.vision.a.weight", "model.vision.b.weight", "mtp.0.weight"],
            ["the weights also hold model.vision, mtp, which"],
        ),
    ],
)
def test_parts_of_their_own_are_left_out_and_named(names: list[str], said: list[str], target: Path) -> None:
    add_weights(target, names)
    notes: list[str] = []
    load_model(str(target), note=notes.append)
    assert len(notes) == len(said)
    assert all(part in note for part, note in zip(said, notes, strict=True))


def test_layers_that_predict_further_ahead_are_left_out_and_named(target: Path) -> None:
    add_weights(target, ["model.layers.2.eh_proj.weight", "model.layers.2.mlp.up_proj.weight"])
    configure(target, num_nextn_predict_layers=1)
    notes: list[str] = []
    load_model(str(target), note=notes.append)
    assert [note.split(": ")[1] for note in notes] == [
        "the weights also hold model.layers.2, which are not part of LlamaForCausalLM and are left out"
    ]
    add_weights(target, ["model.layers.3.mlp.up_proj.weight"])
    with pytest.raises(ModelError, match="the weights hold 4 layers"):
        load_model(str(target))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_whole_checkpoints_leave_nothing_out(name: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    save_model(random_model(CASES[name].config(len(tokenizer))), tokenizer, tmp_path / "target")
    notes: list[str] = []
    load_model(str(tmp_path / "target"), note=notes.append)
    assert notes == []


SMALL_FILES = {
    "preprocessor_config.json": '{"image_processor_type": "Gemma3ImageProcessor"}',
    "processor_config.json": "{}",
    "chat_template.json": '{"chat_template": "x"}',
    "additional_chat_templates/tool_use.jinja": "{{ messages }}",
    "tokenizer.model": "pieces",
    "LICENSE": "terms",
    "USE_POLICY.md": "more terms",
}
NOT_ONES = (
    "README.md",
    "optimizer.pt",
    "training_args.bin",
    "pytorch_model.bin",
    "run.py",
    ".env",
    "trainer_state.json",
)


def test_small_files_go_with_a_saved_model_and_nothing_else_does(target: Path, tmp_path: Path) -> None:
    written = {path.name for path in target.iterdir()}
    for name, text in SMALL_FILES.items():
        (target / name).parent.mkdir(exist_ok=True)
        (target / name).write_text(text)
    for name in NOT_ONES:
        (target / name).write_text("x")
    again = resaved(target, tmp_path)
    found = {str(path.relative_to(again)) for path in again.rglob("*") if path.is_file()}
    assert found == written | set(SMALL_FILES)
    assert {name: (again / name).read_text() for name in SMALL_FILES} == SMALL_FILES


def test_what_was_written_is_not_replaced(target: Path, tmp_path: Path) -> None:
    loaded = load_model(str(target), device="cpu")
    loaded.tokenizer.chat_template = "{{ 'ours' }}"
    (target / "chat_template.jinja").write_text("{{ 'theirs' }}")
    save_model(loaded.model, loaded.tokenizer, tmp_path / "again")
    assert (tmp_path / "again" / "chat_template.jinja").read_text() == "{{ 'ours' }}"


def test_files_of_the_tokenizer_come_from_where_it_came_from(target: Path, tmp_path: Path) -> None:
    other = resaved(target, tmp_path).rename(tmp_path / "other")
    (target / "tokenizer.model").write_text("not this one's")
    (other / "merges.txt").write_text("this one's")
    loaded = load_model(str(target), tokenizer=str(other), device="cpu")
    save_model(loaded.model, loaded.tokenizer, tmp_path / "again")
    assert not (tmp_path / "again" / "tokenizer.model").exists()
    assert (tmp_path / "again" / "merges.txt").read_text() == "this one's"


def test_a_link_out_of_the_checkpoint_is_not_followed(target: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (target / "NOTICE").symlink_to(tmp_path / "secret")
    assert not (resaved(target, tmp_path) / "NOTICE").exists()


def test_links_of_the_hubs_cache_are_followed(target: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    (tmp_path / "models--a--b" / "blobs").mkdir(parents=True)
    snapshot.parent.mkdir()
    target.rename(snapshot)
    (tmp_path / "models--a--b" / "blobs" / "4567").write_text("terms")
    (snapshot / "NOTICE").symlink_to("../../blobs/4567")
    assert (resaved(snapshot, tmp_path) / "NOTICE").read_text() == "terms"


def test_code_of_its_own_goes_with_a_model_that_was_trusted(
    target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    (target / "own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\nfrom .part import NAME\n"
        "class Config(LlamaConfig):\n    model_type = NAME\n"
        "class Model(LlamaForCausalLM):\n    config_class = Config\n"
    )
    (target / "part.py").write_text("NAME = 'own'\n")
    configure(target, model_type="own", auto_map={"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"})
    loaded = load_model(str(target), device="cpu", trust_remote_code=True)
    save_model(loaded.model, loaded.tokenizer, tmp_path / "again")
    again = load_model(str(tmp_path / "again"), device="cpu", trust_remote_code=True)
    assert type(again.model).__name__ == "Model"
    assert (tmp_path / "again" / "part.py").is_file()


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        (LocalEntryNotFoundError("offline"), "the hub cannot be reached, and this machine has no copy"),
        (OfflineModeIsEnabled("offline"), "the hub cannot be reached, and this machine has no copy"),
        (
            RepositoryNotFoundError.__new__(RepositoryNotFoundError),  # made otherwise, it wants a response
            "the hub has no such repository, or your token (HF_TOKEN) has no access to it",
        ),
    ],
)
@pytest.mark.parametrize("load", [load_config, load_tokenizer])
def test_a_name_that_is_neither_folder_nor_hub_id_is_said_as_both(
    load: Callable[[str], object],
    reason: Exception,
    said: str,
    target: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def from_pretrained(*_: object, **__: object) -> None:
        raise OSError("We couldn't connect to 'https://hub.test'") from reason

    monkeypatch.chdir(tmp_path)
    for kind in (AutoConfig, AutoTokenizer):
        monkeypatch.setattr(kind, "from_pretrained", from_pretrained)
    with pytest.raises(ModelError) as raised:
        load("targt")
    assert str(raised.value) == (
        "targt: no such folder (did you mean 'target'?), and it could not be loaded as a hub id: "
        f"{said}; check the path, or the name and the network"
    )


def test_a_home_folder_that_is_not_expanded_is_given_in_full(
    target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ModelError, match=rf"^~/target: no such folder \(~ is not expanded here: write {target}\)"):
        load_model("~/target")
