"""Clients in other languages: the ordinary tools make stubs of protos/, and programs use them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROTOS = ROOT / "protos"
FILES = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.glob("pilot/v1/*.proto"))
MODULE = "github.com/pilot-grpc/pilot"

pytestmark = [pytest.mark.full, pytest.mark.timeout(600)]


def run(directory: Path, *command: str | Path) -> str:
    """Run a program; what it complains of is in the test's own output."""
    completed = subprocess.run(
        command, cwd=directory, check=True, stdout=subprocess.PIPE, text=True
    )
    return completed.stdout


def test_a_go_client_compiles(tmp_path: Path, go_plugins: list[Path]) -> None:
    """protoc-gen-go and protoc-gen-go-grpc; buf/validate comes from its published module."""
    client = tmp_path / "client"
    shutil.copytree(ROOT / "tests" / "full" / "go", client)
    plugins = [f"--plugin={path}" for path in go_plugins]
    outputs = [
        f"--{kind}_{part}"
        for kind in ("go", "go-grpc")
        for part in ("out=.", f"opt=module={MODULE}")
    ]

    run(
        client, sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTOS}", *plugins, *outputs, *FILES
    )
    run(client, "go", "vet", "./...")
    run(client, "go", "build", "-o", tmp_path / "spend", ".")

    assert (tmp_path / "spend").exists()


def test_a_node_client_compiles_and_loads_the_protos(tmp_path: Path) -> None:
    """grpc-js with proto-loader: types for TypeScript, the protos themselves at run time."""
    client = tmp_path / "client"
    shutil.copytree(ROOT / "tests" / "full" / "node", client)
    programs = client / "node_modules" / ".bin"

    run(client, "npm", "ci", "--silent", "--no-audit", "--no-fund")
    options = ["--longs=String", "--enums=String", "--oneofs", "--grpcLib=@grpc/grpc-js"]
    generate = programs / "proto-loader-gen-types"
    run(client, generate, "-I", PROTOS, *options, "--outDir=gen", *FILES)
    run(client, programs / "tsc")

    assert run(client, "node", "dist/spend.js", PROTOS) == "function\n"
