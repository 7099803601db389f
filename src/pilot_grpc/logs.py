"""Logging: standard library records, one a line, as text or as JSON, to standard error.

Nothing should log a secret. Should something do so all the same (a driver's message, say), the
shapes that secrets have here are blotted out at the last moment.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import UTC, datetime
from typing import Final

from pilot_grpc.settings import LogFormat, LogLevel

# The password of a URL, and the credentials of sessions, API keys and agents. Eight characters
# of a key are its public prefix; whole ones are much longer.
SECRETS: Final = (
    (re.compile(r"(://[^:/@\s]*):[^@\s]*@"), r"\1:***@"),
    (re.compile(r"\b(p[ska]_)[A-Za-z0-9_-]{12,}"), r"\1***"),
)

# What every record has; the rest of its attributes came by `extra`.
STANDARD_ATTRIBUTES: Final = frozenset(vars(logging.makeLogRecord({}))) | {
    "message",
    "time",
    "extras",
}


def configure(level: LogLevel, log_format: LogFormat) -> None:
    """Send the records of the whole process to standard error. Called once, by the command line."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format is LogFormat.JSON else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def redact(text: str) -> str:
    """Blot out what looks like a secret."""
    for pattern, replacement in SECRETS:
        text = pattern.sub(replacement, text)
    return text


class TextFormatter(logging.Formatter):
    """`2026-11-23T18:38:00.123Z INFO pilot_grpc.server: listening`, and extras as key=value."""

    def __init__(self) -> None:
        """Fix the layout."""
        super().__init__("%(time)s %(levelname)s %(name)s: %(message)s%(extras)s")

    def format(self, record: logging.LogRecord) -> str:
        extras = "".join(f" {name}={value}" for name, value in _extras(record).items())
        record.__dict__ |= {"time": _time(record), "extras": extras}
        return redact(super().format(record))


class JsonFormatter(logging.Formatter):
    """One object a line: time, level, logger, message, extras, and the traceback of an error."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_extras(record),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return redact(json.dumps(entry, default=str))


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _extras(record: logging.LogRecord) -> dict[str, object]:
    return {k: v for k, v in vars(record).items() if k not in STANDARD_ATTRIBUTES}
