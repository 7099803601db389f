"""Tests that are many of a kind: some of them in `make test`, all of them in `make test-all`."""

from collections.abc import Iterable
from typing import Any

import pytest


def first_of(values: Iterable[Any], count: int = 1) -> list[Any]:
    """Mark all but the first so many as `full`."""
    return [
        value if number < count else pytest.param(value, marks=pytest.mark.full)
        for number, value in enumerate(values)
    ]
