"""The package as others install it: away from a checkout, with its SQL inside."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]

pytestmark = pytest.mark.full


def test_a_wheel_migrates_and_pushes_without_a_checkout(
    tmp_path: Path, empty_database: str
) -> None:
    options = ["--no-deps", "--no-build-isolation"]
    subprocess.run([*PIP, "wheel", *options, "--wheel-dir", tmp_path, ROOT], check=True)
    (wheel,) = tmp_path.glob("pilot_grpc-*.whl")
    site = tmp_path / "site"
    subprocess.run([*PIP, "install", "--no-deps", "--target", site, wheel], check=True)

    for command in ("push", "migrate"):
        subprocess.run(
            [sys.executable, "-m", "pilot_grpc", "db", command],
            env={"PATH": os.defpath, "PYTHONPATH": str(site), "DATABASE_URL": empty_database},
            cwd=tmp_path,
            check=True,
        )

    assert (site / "pilot_grpc" / "sql" / "schema.sql").exists()
