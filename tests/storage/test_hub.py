"""Which names are taken for repositories on the hub."""

from pathlib import Path

import pytest
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils._validators import validate_repo_id

from letheon.errors import ModelError
from letheon.model.checkpoint_files import check_source
from letheon.storage.hub import is_hub_id

NAMES = [
    *("gpt2", "allenai/OLMo-1B-0724-hf", "owner/_name", "_owner/name", "o/n.v1_2", "1/2", "a_/b"),
    *("", "/tmp/model", "./model", "../model", "~/model", "owner/name/more", "owner/", "/name", "owner name"),
    *("owner/.name", "owner/-name", "owner/name.", "owner/name-", "-o/name", "o..w/name", "o--w/name", "o/name.git"),
    *("ä/name", "name\n", "owner\\name", "C:\\models"),
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_has_the_form_of_a_hub_id_where_the_hub_says_so(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        validate_repo_id(name)
        is_allowed = name.isascii()  # the hub's own client lets more letters through than the hub has
    except HFValidationError:
        is_allowed = False
    assert is_hub_id(name) == is_allowed


@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_hub_id_and_not_here_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if is_hub_id(name) or Path(name).exists():
        check_source(name)
    else:
        with pytest.raises(ModelError, match="no such folder"):
            check_source(name)


def test_a_folder_of_that_name_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_hub_id("owner/name")
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert not is_hub_id("owner/name")
