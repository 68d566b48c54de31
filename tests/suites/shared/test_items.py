"""Items that jobs read: their hash, or the reason why they are missing."""

import pytest

from suites.shared.items import hashed_item


def test_an_item_has_the_hash_that_was_read() -> None:
    item = hashed_item("data", lambda: "ab12")
    assert (item.sha256, item.reason, str(item)) == ("ab12", "", "data: ab12")


def test_a_reason_is_one_line() -> None:
    def fail() -> str:
        raise OSError("no\n  route")

    assert str(hashed_item("data", fail)) == "data: missing: no route"


def test_a_mistake_of_the_program_is_no_reason() -> None:
    with pytest.raises(KeyError):
        hashed_item("data", lambda: {}["absent"])
