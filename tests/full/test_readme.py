"""The README's walk, taken from its text and typed into a shell, against a server that runs.

In a ```console block, `$ ` begins a command, a backslash at its end continues it, and what
follows is all that it prints. `...` in a line stands for anything in that line, and on a line of
its own for any lines.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import pytest

from tests.processes import address_in, first_run

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
ADDRESS = "127.0.0.1:50051"

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# "save this as `spend.py`", and the block that comes next
PROGRAM = re.compile(r"ave this as `(\w+\.py)`.*?^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^\$ ((?:.*\\\n)*.*)\n((?:(?!\$ ).*\n)*)", re.MULTILINE)
END_OF_OUTPUT = "--- end of output ---"
WALK_SECONDS = 90

pytestmark = [pytest.mark.full, pytest.mark.timeout(600)]


@dataclass(frozen=True)
class Step:
    """A command of the README, and what it says that the command prints."""

    line: int
    command: str
    output: str

    def __str__(self) -> str:
        """Where to look, when it is wrong."""
        return f"README.md:{self.line}: {self.command}"


def steps(text: str) -> list[Step]:
    """Every command of every console block, in order."""
    found = []
    for block in BLOCK.finditer(text):
        if block[1] != "console":
            continue
        for command in COMMAND.finditer(block[2]):
            line = text.count("\n", 0, block.start(2) + command.start()) + 1
            found.append(Step(line, command[1], command[2]))
    return found


def agrees(printed: str, said: str) -> bool:
    """Compare as the eye does: tabs are spaces, and `...` stands for what varies."""
    pattern = ""
    for line in said.splitlines():
        if line == "...":
            pattern += r"(?:.*\n)+?"
        else:
            pattern += ".+?".join(map(re.escape, line.split("..."))) + r"\n"
    return re.fullmatch(pattern, printed.expandtabs()) is not None


def type_in(commands: list[str], directory: Path, **environ: str) -> list[str]:
    """Run commands in one shell, as a person does; what each printed, errors included."""
    script = f"\necho '{END_OF_OUTPUT}'\n".join([*commands, ""])
    shell = subprocess.run(
        ["bash", "--noprofile", "--norc", "-c", f"exec 2>&1\n{script}"],
        cwd=directory,
        env={"HOME": os.environ["HOME"], "PYTHONDONTWRITEBYTECODE": "1", **environ},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    return shell.stdout.split(f"{END_OF_OUTPUT}\n")[: len(commands)]


def one_line(text: str) -> str:
    """A text without its line breaks, whatever the indentation."""
    return " ".join(text.replace("\\\n", " ").split())


@pytest.fixture
def announcement(home: Path) -> Iterator[str]:
    """What `pilot serve` prints, as `make run` starts it, on a free port and without data."""
    left = datetime.now(UTC).replace(hour=23, minute=59, second=59) - datetime.now(UTC)
    if left.total_seconds() < WALK_SECONDS:
        time.sleep(left.total_seconds() + 2)  # the walk counts what is spent in one day
    with first_run(home) as text:
        yield text


@pytest.fixture
def checkout(tmp_path: Path, home: Path) -> Path:
    """A copy of this one, so that the walk may write beside it, with the server's data in it."""
    ignored = shutil.ignore_patterns(".*", "__pycache__", "dist", "node_modules")
    copy = shutil.copytree(ROOT, tmp_path / "pilot", ignore=ignored)
    (copy / ".pilot").symlink_to(home / "data")
    return copy


def test_the_walk_prints_what_the_readme_says(
    announcement: str, checkout: Path, grpcurl: Path, go_plugins: list[Path]
) -> None:
    walk = steps(README)
    tools = [str(Path(sys.executable).parent), str(grpcurl.parent), os.environ["PATH"]]
    for name, program in PROGRAM.findall(README):
        (checkout / name).write_text(program)

    address = address_in(announcement)
    commands = [step.command.replace(ADDRESS, address) for step in walk]
    outputs = type_in(commands, checkout, PATH=os.pathsep.join(tools), PILOT_LISTEN_ADDRESS=address)

    wrong = [
        f"{step}\n-- says\n{step.output}-- and prints\n{output}"
        for step, output in zip(walk, outputs, strict=True)
        if not agrees(output, step.output)
    ]
    assert len(walk) >= 20
    if wrong:
        pytest.fail("\n".join(wrong), pytrace=False)


def test_the_server_prints_the_first_command_of_the_walk(announcement: str) -> None:
    first = steps(README)[0].command.replace(ADDRESS, address_in(announcement))

    assert one_line(first) in one_line(announcement)


def test_the_walk_has_its_commands_in_order() -> None:
    walk = steps(README)

    assert "SignIn" in walk[0].command
    assert all(before.line < after.line for before, after in pairwise(walk))


@pytest.mark.parametrize(
    ("printed", "said"),
    [
        ('{\n  "id": "c1",\n  "new": 1\n}\n', '{\n  "id": "..."\n}\n'),
        ('{\n  "id": ""\n}\n', '{\n  "id": "..."\n}\n'),
        ("a\nb\nc\n", "a\n...\nd\n"),
        ("a\nc\n", "a\n...\nc\n"),
        ("a\nb\n", "a\n"),
        ("", "a\n"),
    ],
)
def test_what_is_wrong_is_noticed(printed: str, said: str) -> None:
    """A line more, an empty value, another line, nothing where something was to be."""
    assert not agrees(printed, said)
