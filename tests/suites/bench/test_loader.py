"""The benchmark of the loader: windows of the shards, rows per loader with their spread, and refusals."""

import pytest
import torch
from typer.testing import CliRunner

from harness.experiments.schema import DataConfig
from harness.training.batches import open_data
from run import app
from suites.bench import loader

cli = CliRunner()


def test_every_loader_has_its_rate_and_spread() -> None:
    rows = loader.run(seq_len=64, rows=4, steps=2, workers=0)
    assert [row["loader"] for row in rows] == ["mixerbench", "mixerbench, from disk", "DataLoader, no workers"]
    for row in rows:
        assert 0 < row["low"] <= row["tokens_per_second"] <= row["high"]
        assert (row["seq_len"], row["rows"], row["steps"], row["repeats"]) == (64, 4, 2, loader.REPEATS)
    header, *lines = loader.render(rows).splitlines()
    assert header.startswith(f"2 steps of 4 rows of 64 tokens; medians of {loader.REPEATS} passes") and len(lines) == 4


def test_windows_follow_each_other_and_overlap_by_the_last_target() -> None:
    phase = {"tokens": 64, "seq_len": 16, "rows": {"text": 1}}
    data = open_data(DataConfig.model_validate({"phases": [phase]}))
    windows = loader.Windows(data, 16)
    assert len(windows) == data.windows("train", 16)
    first, second = windows[0], windows[1]
    assert first.dtype == torch.int64 and first.shape == second.shape == (17,) and first[-1] == second[0]
    loader.drop_cached_pages(data)
    assert torch.equal(windows[0], first)


def test_more_rows_than_the_corpus_has_are_refused() -> None:
    with pytest.raises(ValueError, match="--steps: 1000000 of 64 rows are more than the [0-9]+ windows; ask for fewer"):
        loader.run(seq_len=256, rows=64, steps=10**6, workers=0)


@pytest.mark.parametrize(
    ("option", "message"), [("--steps", "--steps: 0 cannot be; give at least 1"), ("--rows", "--rows: 0 cannot be")]
)
def test_nothing_to_read_is_refused(option: str, message: str) -> None:
    result = cli.invoke(app, ["bench", "loader", option, "0"])
    assert result.exit_code == 2 and message in result.output
