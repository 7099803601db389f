"""Logs: one record a line, machine-readable on demand, and nothing in them that opens a door."""

from __future__ import annotations

import json
import logging

import pytest

from pilot_grpc.logs import JsonFormatter, TextFormatter, redact


def record(message: str, **extra: object) -> logging.LogRecord:
    made = logging.makeLogRecord({"name": "pilot", "levelname": "INFO", "msg": message, **extra})
    made.created = 1_795_460_000.5
    return made


def test_text_is_a_line_with_its_extras() -> None:
    line = TextFormatter().format(record("spent", amount=5))

    assert line == "2026-11-23T18:53:20.500Z INFO pilot: spent amount=5"


def test_json_is_an_object_a_line() -> None:
    """A traceback with its many lines stays inside the one line."""
    error = RuntimeError("broken\nin two")
    line = JsonFormatter().format(record("failed", exc_info=(RuntimeError, error, None)))

    assert "\n" not in line
    entry = json.loads(line)
    assert entry["time"] == "2026-11-23T18:53:20.500Z"
    assert entry["level"] == "info"
    assert entry["message"] == "failed"
    assert "RuntimeError: broken" in entry["exception"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://ann:hunter2@db/pilot", "postgresql://ann:***@db/pilot"),
        ("Bearer pk_abcdefghijklmnopqrstuvwxyz", "Bearer pk_***"),
        ("the key pk_abcde", "the key pk_abcde"),
    ],
)
def test_secrets_are_blotted_out(text: str, shown: str) -> None:
    assert redact(text) == shown
    assert shown in TextFormatter().format(record(text))
    assert shown in json.loads(JsonFormatter().format(record(text)))["message"]
