"""Install a lock into this Python's environment: with uv, as pip is configured, else with pip.

uv installs Pilot's locks about five times as fast as pip, but reads none of pip's configuration.
What a person told pip about indexes, proxies and certificates is told to uv in its own words, and
where that is not enough, pip does the work itself.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Final

PYTHON: Final = [sys.executable, "-m"]
OPTIONS: Final = ["--quiet", "--no-deps", "--require-hashes", "--requirement"]

# pip's option, and uv's variable for the same. uv separates lists by the second character.
VARIABLES: Final = {
    "cert": ("SSL_CERT_FILE", ""),
    "client-cert": ("SSL_CLIENT_CERT", ""),
    "default-timeout": ("UV_HTTP_TIMEOUT", ""),
    "extra-index-url": ("UV_INDEX", " "),
    "find-links": ("UV_FIND_LINKS", ","),
    "index-url": ("UV_DEFAULT_INDEX", ""),
    "no-index": ("UV_NO_INDEX", ""),
    "proxy": ("ALL_PROXY", ""),
    "timeout": ("UV_HTTP_TIMEOUT", ""),
    "trusted-host": ("UV_INSECURE_HOST", " "),
}


def main() -> int:
    """Install the lock that is named; answer 0 when everything in it is there."""
    lock = sys.argv[1]
    environ = {**uv_environ(pip_options()), **os.environ}
    if run([*PYTHON, "uv", "pip", "install", *OPTIONS, lock], environ) == 0:
        return 0
    print("uv could not do it; trying pip", file=sys.stderr)
    return run([*PYTHON, "pip", "install", *OPTIONS, lock], os.environ)


def run(command: list[str], environ: Mapping[str, str]) -> int:
    """Run a command to its end and answer its exit code."""
    return subprocess.run(command, env=environ, check=False).returncode


def pip_options() -> dict[str, str]:
    """What pip's files and variables say, as pip itself reads them; the later line wins."""
    listed = subprocess.run(
        [*PYTHON, "pip", "config", "list"], capture_output=True, text=True, check=True
    )
    options = {}
    for line in listed.stdout.splitlines():
        name, _, value = line.partition("=")
        options[name.rpartition(".")[2]] = str(ast.literal_eval(value))
    return options


def uv_environ(options: Mapping[str, str]) -> dict[str, str]:
    """The options of pip as variables of uv."""
    # As pip does: the system's certificates, and the best version that any index has.
    environ = {"UV_SYSTEM_CERTS": "true", "UV_INDEX_STRATEGY": "unsafe-best-match"}
    for name, value in options.items():
        if name in VARIABLES:
            variable, separator = VARIABLES[name]
            environ[variable] = separator.join(value.split()) if separator else value
    return environ


if __name__ == "__main__":
    sys.exit(main())
