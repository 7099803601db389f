"""Ids: CUIDs that follow each other."""

import re
from collections.abc import Iterator

import pytest

from pilot_grpc.services import ids
from pilot_grpc.services.ids import IdSource, base36


def moments(*milliseconds: int) -> IdSource:
    """A source whose clock shows these times, and then stands still."""
    times: Iterator[int] = iter(milliseconds)
    last = [0]

    def clock() -> int:
        last[0] = next(times, last[0])
        return last[0]

    return IdSource(clock)


def test_an_id_is_a_cuid() -> None:
    """The letter c and 24 characters of base 36."""
    new_id = IdSource()

    assert all(re.fullmatch(r"c[0-9a-z]{24}", new_id()) for _ in range(100))


def test_ids_follow_each_other_even_when_the_clock_steps_back() -> None:
    """Within a millisecond, over several, and after a step of an hour."""
    new_id = moments(1_800_000_000_000, 1_800_000_000_000, 1_800_000_000_005, 1_799_996_400_000)

    made = [new_id() for _ in range(1_000)]

    assert made == sorted(set(made))


def test_more_ids_than_a_millisecond_has_borrow_from_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The counter is full after ten: the order goes on, and nothing is made twice."""
    monkeypatch.setattr(ids, "_COUNTER_END", 10)
    new_id = moments(1_800_000_000_000)

    made = [new_id() for _ in range(35)]

    assert made == sorted(set(made))
    assert len({each[:9] for each in made}) == 4


def test_processes_do_not_make_the_same_ids() -> None:
    """At the same millisecond, with the same count."""
    made = [moments(1_800_000_000_000)() for _ in range(1_000)]

    assert len(set(made)) == 1_000
    assert len({each[:13] for each in made}) == 1


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0000"), (35, "000z"), (36, "0010"), (36**4 - 1, "zzzz")]
)
def test_base_36_is_written_with_all_its_digits(number: int, text: str) -> None:
    assert base36(number, 4) == text
    assert int(base36(number, 4), 36) == number
