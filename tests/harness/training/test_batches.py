"""The global batch is the same however many processes share it, and an epoch reads every window once."""

from collections import Counter
from pathlib import Path

import pytest
import torch

from harness.data.shards import TokenData
from harness.data.tokenizer import load_tokenizer
from harness.experiments.expand import expand
from harness.experiments.schema import Experiment
from harness.training.batches import data_sha256, step_rows
from harness.training.distributed import World

ROWS, SEQ_LEN = 64, 31


@pytest.mark.parametrize("size", [1, 2, 4, 8, 16, 32, 64])
def test_no_window_is_lost_or_repeated_in_an_epoch_at_any_world_size(small_data: Path, size: int) -> None:
    tokenizer, data = load_tokenizer(), TokenData(small_data)
    windows = data.windows("train", SEQ_LEN)
    steps = -(-windows // ROWS)
    content = {
        "name": "epoch",
        "preset": "cpu-600k",
        "mixers": ["attention"],
        "data": {
            "source": str(small_data),
            "phases": [{"tokens": steps * ROWS * SEQ_LEN, "seq_len": SEQ_LEN, "rows": {"text": ROWS}}],
        },
    }
    experiment = Experiment.model_validate(content)
    (config,) = expand(experiment, len(tokenizer), data_sha256(experiment.data))
    read = []
    for step in range(steps):
        whole, _ = step_rows(config, step, tokenizer, data)
        shares = [step_rows(config, step, tokenizer, data, World(rank, size, rank))[0] for rank in range(size)]
        assert torch.equal(torch.cat(shares), whole)
        read += [tuple(row.tolist()) for row in whole]
    stream = data.tokens("train")
    expected = Counter(tuple(stream[i * SEQ_LEN : (i + 1) * SEQ_LEN + 1].tolist()) for i in range(windows))
    assert Counter(read[:windows]) == expected
