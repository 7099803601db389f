"""What README.md and CONTRIBUTING.md say of settings, commands and files is so.

The walk in the README is run by tests/full/test_readme.py.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pilot_grpc import cli
from pilot_grpc.settings import Settings

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()

# | `VARIABLE` | default | meaning |
VARIABLES = dict(re.findall(r"^\| `([A-Z_]+)` \| (.*?) \|", README, re.MULTILINE))
# A default that can be typed is one piece of code; others are told in words.
TYPEABLE = {
    name: default[1:-1] for name, default in VARIABLES.items() if re.fullmatch("`[^`]+`", default)
}
# | `make run` | meaning |
COMMANDS = set(re.findall(r"^\| `((?:make|pilot) [^`]+)` \|", README, re.MULTILINE))


class Watched(dict[str, str]):
    """An environment that notes what it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: set[str] = set()

    def get(self, key: str, default: str | None = None) -> str | None:  # type: ignore[override]
        self.asked.add(key)
        return super().get(key, default)


def pilot_commands(parser: argparse.ArgumentParser, name: str) -> Iterator[str]:
    """Every command of the command line, whole."""
    branches = [
        action
        for action in parser._actions
        if isinstance(action, argparse._SubParsersAction)  # the only way to ask argparse
    ]
    if not branches:
        yield name
    for branch in branches:
        for word, below in branch.choices.items():
            yield from pilot_commands(below, f"{name} {word}")


def make_targets() -> set[str]:
    """Every target that `make` alone lists, but itself."""
    text = (ROOT / "Makefile").read_text()
    return set(re.findall(r"^([a-z-]+):.*## ", text, re.MULTILINE)) - {"help"}


def test_the_readme_lists_every_setting_and_no_other() -> None:
    environ = Watched()
    Settings.from_environ(environ)

    assert set(VARIABLES) == environ.asked


@pytest.mark.parametrize("name", TYPEABLE)
def test_a_default_in_the_readme_is_the_default(name: str) -> None:
    """Who sets a variable to what the README calls its default has changed nothing."""
    assert Settings.from_environ({name: TYPEABLE[name]}) == Settings.from_environ({})


def test_most_defaults_in_the_readme_can_be_typed() -> None:
    assert len(TYPEABLE) >= 15


def test_the_readme_lists_every_command_and_no_other() -> None:
    ours = {f"make {target}" for target in make_targets()}

    assert ours | set(pilot_commands(cli._parser(), "pilot")) == COMMANDS


@pytest.mark.parametrize("text", [README, CONTRIBUTING], ids=["README", "CONTRIBUTING"])
def test_what_is_named_exists(text: str) -> None:
    targets = set(re.findall(r"`make ([a-z-]+)", text))
    links = [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if "://" not in link]

    assert links
    assert targets <= make_targets()
    assert [link for link in links if not (ROOT / link).exists()] == []
