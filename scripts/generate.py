"""Generate the Python code of protos/ into a package, or check that it is fresh.

protoc writes absolute imports (`from pilot.v1 import ...`), which would claim the top-level
names `pilot` and `buf` for every program that installs Pilot. They are rewritten to the package
that the files live in.

buf/validate is generated, too: protovalidate ships its descriptors only for its own protobuf
runtime, not for google.protobuf, and the options in our files need them there.
"""

from __future__ import annotations

import argparse
import filecmp
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
PROTOS: Final = ROOT / "protos"
PACKAGE: Final = "pilot_grpc.gen"
ABSOLUTE_IMPORT: Final = re.compile(r"^from (?=(?:pilot|buf)\.)", re.MULTILINE)
HEADER: Final = '"""Generated from protos/ by `make generate`; never edited."""\n'


def main() -> int:
    """Generate into the directory named, or with --check compare and change nothing."""
    parser = argparse.ArgumentParser(description="Generate the Python code of protos/.")
    parser.add_argument("--check", action="store_true", help="compare only; 1 when it is stale")
    parser.add_argument("target", type=Path, help="the directory of the package")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        fresh = Path(scratch)
        generate(fresh)
        if arguments.check:
            return report(differences(fresh, arguments.target))
        shutil.rmtree(arguments.target, ignore_errors=True)
        shutil.copytree(fresh, arguments.target)
    return 0


def generate(target: Path) -> None:
    """Write the modules, stubs and servicers of every proto into an empty directory."""
    pilot = sorted(PROTOS.glob("pilot/**/*.proto"))
    vendored = sorted(PROTOS.glob("buf/**/*.proto"))
    protoc(target, pilot + vendored, "--python_out", "--pyi_out")
    protoc(target, pilot, "--grpc_python_out")
    for path in [*target.rglob("*.py"), *target.rglob("*.pyi")]:
        path.write_text(ABSOLUTE_IMPORT.sub(f"from {PACKAGE}.", path.read_text()))
    for directory in [target, *(path for path in target.rglob("*") if path.is_dir())]:
        (directory / "__init__.py").write_text(HEADER)


def protoc(target: Path, files: list[Path], *outputs: str) -> None:
    """Run the protoc that grpcio-tools brings, in a process of its own."""
    command = [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={PROTOS}"]
    command += [f"{output}={target}" for output in outputs]
    command += [str(path.relative_to(PROTOS)) for path in files]
    subprocess.run(command, check=True)


def differences(fresh: Path, stored: Path) -> list[str]:
    """The files that are missing, left over, or not what protoc writes today."""
    names = {path.relative_to(root) for root in (fresh, stored) for path in generated(root)}
    _, differ, unreadable = filecmp.cmpfiles(fresh, stored, sorted(map(str, names)), shallow=False)
    return sorted([*differ, *unreadable])


def generated(root: Path) -> list[Path]:
    """Every source file below a directory; what Python caches beside them does not count."""
    return [path for path in root.rglob("*") if path.suffix in {".py", ".pyi"}]


def report(stale: list[str]) -> int:
    """Name what is stale and how to mend it."""
    for name in stale:
        print(f"stale: {name}", file=sys.stderr)
    if stale:
        print("Run `make generate` and commit the result.", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
