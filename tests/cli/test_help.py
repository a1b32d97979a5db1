"""Help: headings, the settings used most, and the coefficients of the chosen method."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from letheon.cli.main import cli
from letheon.objective.catalogue import METHODS
from letheon.settings import UnlearnSettings
from letheon.settings.facts import RARE, names_where


def shown(*arguments: object) -> str:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def section(text: str, heading: str) -> str:
    """What stands under a heading, on one line."""
    _, _, rest = text.partition(f"\n{heading}:\n")
    return " ".join(rest.split("\n\n")[0].split())


def flags(text: str) -> list[str]:
    return re.findall(r"^  (--[a-z-]+)", text, re.MULTILINE)


def test_the_twelve_settings_used_most_come_first() -> None:
    text = shown("unlearn", "--help")
    headings = re.findall(r"^([A-Z].*):$", text, re.MULTILINE)
    assert headings[0] == "Most used"
    assert headings[-1] == "Other"
    first = section(text, "Most used")
    assert len(re.findall(r"(?<!\S)--[a-z-]+ (?:[A-Z]+|Print)", first)) == 12
    assert all(f"--{name} " in first for name in ("model", "forget", "retain", "out", "recipe", "plan"))
    assert headings[1:-1] == [
        "Model and rows", "Form of the rows", "Output", "Method low-rank-npo", "Beyond the rows", "Adapter", "Steps",
        "Scoring and stopping", "Scores before and after",
    ]  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_all_settings_are_shown_by_help_all_and_the_rare_ones_by_no_other(method: str) -> None:
    short, full = (flags(shown("unlearn", "--method", method, flag)) for flag in ("--help", "--help-all"))
    rare = {f"--{name.replace('_', '-')}" for name in names_where(UnlearnSettings, lambda facts: facts.shown is RARE)}
    assert set(full) - set(short) == rare
    assert [flag for flag in full if flag not in rare] == short


@pytest.mark.parametrize(
    "arguments",
    [
        ["--method", "undial", "--help"],
        ["--help", "--method", "undial"],
        ["--epochs", "3", "--help", "--method=undial"],
        ["--recipe", "undial-7b", "--help"],
        ["--recipe", "neko-1b", "--help", "--method", "undial"],
    ],
)
def test_help_says_what_the_coefficients_of_the_method_are(arguments: list[str]) -> None:
    text = shown("unlearn", *arguments)
    said = section(text, "Method undial")
    assert said == (
        "Loss mean cross-entropy(softmax(z_ref - beta * onehot(y)), p(forget)) "
        "--beta X How far the label's logit is lowered; above 0. [10]"
    )
    assert "[forget with undial]" in section(text, "Steps")


def test_a_settings_file_chooses_the_method_too(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("method: npo-ties\n")
    text = shown("unlearn", "--help", "--recipe", "neko-1b", "--config", tmp_path / "s.yaml")
    said = section(text, "Method npo-ties")
    assert "--kl forward|reverse|gold Form of the retain KL. [forward]" in said
    assert said.endswith("--coefficients density=X Share of the entries that TIES keeps; above 0 and at most 1. [0.8]")


@pytest.mark.parametrize("method", METHODS)
def test_every_coefficient_is_shown_with_its_default(method: str) -> None:
    said = section(shown("unlearn", "--help", "--method", method), f"Method {method}")
    for name, coefficient in METHODS[method].coefficients.items():
        default = coefficient.default
        value = f"{default:g}" if isinstance(default, float) else default
        assert re.search(rf"(--{name} |--coefficients {name}=)\S+ {coefficient.meaning[:5]}.*?\[{value}\]", said, re.I)
    assert ("none" in said) is (not METHODS[method].coefficients)


def test_a_method_without_coefficients_or_with_a_layer() -> None:
    assert section(shown("unlearn", "--help", "--method", "ga"), "Method ga").endswith("Coefficients none")
    said = section(shown("unlearn", "--help", "--method", "rmu"), "Method rmu")
    assert "--coefficients layer=X Decoder layer whose states are steered, counted from 0; at least 0, or auto." in said


def test_a_learning_rate_may_be_given_by_its_short_name(tmp_path: Path) -> None:
    assert "--learning-rate, --lr X" in shown("memorize", "--help")
    given = ["--forget", "f", "--retain", "r", "--out", tmp_path / "o", "--model", tmp_path / "m", "--lr", "0"]
    result = CliRunner().invoke(cli, ["unlearn", *map(str, given)])
    assert "learning_rate: expected a number above 0.0 or 'auto', got '0'" in str(result.exception)
