"""The benchmark of tables: as many records as asked for, its spread, and the least that it takes."""

import pytest

from suites.bench import tables

ONE_SEED = 13 * 31  # models × numbers of tables 2 to 4


def test_as_many_records_as_asked_for_are_loaded_and_tabulated() -> None:
    (row,) = tables.run(2 * ONE_SEED)
    assert (row["records"], row["runs"], row["repeats"]) == (2 * ONE_SEED, 2 * 13, tables.REPEATS)
    assert row["total_s"] == row["load_s"] + row["table_s"] > 0
    # The median of the sums lies among the sums, but not the sum of the medians; both are positive.
    assert 0 < row["low_s"] <= row["high_s"] and row["cpu_s"] > 0
    header, _, line = tables.render([row]).splitlines()
    assert f"medians of {tables.REPEATS}" in header and line.split()[:2] == ["806", "26"]


def test_fewer_records_than_one_seed_are_refused() -> None:
    with pytest.raises(ValueError, match=f"records: 10 are less than one seed; give at least {ONE_SEED}"):
        tables.run(10)
