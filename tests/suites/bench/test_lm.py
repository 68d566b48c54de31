"""Our lm-eval model and lm-eval's HFLM on the same weights: the same answers, and the same scores on real tasks."""

from pathlib import Path

import pytest
import torch

from harness.data.tokenizer import load_tokenizer
from harness.lm.mixer_lm import MixerLM
from suites import language
from suites.bench import lm as lm_bench
from suites.shared.lmeval import run_tasks


@pytest.mark.long
def test_the_benchmark_times_both_on_answers_that_agree(offline_data: Path) -> None:
    rows = lm_bench.run("cpu-600k", 3, 320, torch.device("cpu"))
    assert [row["work"] for row in rows][: len(lm_bench.TASKS)] == list(lm_bench.TASKS) and len(rows) == 7
    for row in rows:
        assert row["seconds"] > 0 and row["ratio"] == min(row["hflm_seconds"].values()) / row["seconds"]
        assert row["equal"] == 1
        # fp32 sums over a few hundred tokens of about ten nats each, in different orders.
        assert row["difference"] is None or row["difference"] < 1e-3
    assert len(lm_bench.render(rows).splitlines()) == 8


@pytest.mark.long
@pytest.mark.parametrize("task", lm_bench.TASKS)
def test_a_real_task_gets_the_same_score_from_both(task: str, offline_data: Path) -> None:
    tokenizer = load_tokenizer()
    model = lm_bench.transformer("cpu-600k", len(tokenizer))
    # At its initial weights a model is too unsure for scores to depend on the text that it has read.
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("_proj.weight"):
                weight.mul_(8.0)
    ours = MixerLM(model, tokenizer)
    theirs = lm_bench.hflm(ours, 2048, 8)
    metrics = language.SPECS[task].metrics
    scores = []
    for lm in (ours, theirs):
        definition, _ = language.load(task, True)
        samples = run_tasks(lm, [definition], 40)[task].samples
        scores.append({metric: [sample[metric] for sample in samples] for metric in metrics})
    for metric in metrics:
        assert scores[0][metric] == pytest.approx(scores[1][metric], rel=1e-4), metric
