"""Our protos with their comments, as those who read them see them."""

import subprocess
import sys
from functools import cache
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorSet

PROTOS = Path(__file__).parents[2] / "protos"


@cache
def source() -> FileDescriptorSet:
    """The files of pilot.v1."""
    files = [str(path.relative_to(PROTOS)) for path in sorted(PROTOS.glob("pilot/v1/*.proto"))]
    compiled = subprocess.run(
        [
            *(sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={PROTOS}"),
            *("--include_source_info", "--descriptor_set_out=/dev/stdout", *files),
        ],
        capture_output=True,
        check=True,
    )
    return FileDescriptorSet.FromString(compiled.stdout)


@cache
def comments() -> dict[tuple[str, tuple[int, ...]], str]:
    """The comment above each element, by its file and its path in there, on one line."""
    return {
        (file.name, tuple(location.path)): " ".join(location.leading_comments.split())
        for file in source().file
        for location in file.source_code_info.location
        if location.leading_comments
    }


@cache
def told_of_errors() -> dict[str, str]:
    """The comment of every ErrorReason, by its name without the prefix."""
    (file,) = [each for each in source().file if each.name.endswith("/errors.proto")]
    return {
        value.name.removeprefix("ERROR_REASON_"): comments()[file.name, (5, 0, 2, index)]
        for index, value in enumerate(file.enum_type[0].value)
        if value.number
    }
