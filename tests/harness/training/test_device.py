"""The device that a process trains on: dtype, peak memory, and the rate of matrix products."""

from pathlib import Path

import pytest
import torch

from harness.experiments.schema import TrainConfig
from harness.training import device
from harness.training.device import ceiling, matmul_rate, peak_memory, recipe_dtype, this_device

CPU = torch.device("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_training_runs_on_the_cpu_in_fp32() -> None:
    assert this_device() == CPU
    assert recipe_dtype(TrainConfig(), CPU) == torch.float32


def test_a_dtype_that_the_recipe_names_is_used() -> None:
    assert recipe_dtype(TrainConfig(dtype="bf16"), CPU) == torch.bfloat16
    assert recipe_dtype(TrainConfig(dtype="fp32"), CPU) == torch.float32


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="there is no /proc")
def test_peak_memory_of_a_cpu_is_the_peak_of_the_process_in_bytes() -> None:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    assert peak_memory(CPU) == pytest.approx(1024 * int(line.split()[1]), rel=0.05)


def test_the_rate_of_matrix_products_is_measured_once_per_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "MATMULS", 1)
    ceiling.cache_clear()
    first = ceiling(CPU, torch.float32, 1)
    assert 1e8 < first < 1e14  # FLOP/s of a CPU
    monkeypatch.setattr(device, "matmul_rate", lambda *_: -1.0)
    assert ceiling(CPU, torch.float32, 1) == first
    assert ceiling(CPU, torch.float32, 2) == -1.0  # another number of threads is another rate
    ceiling.cache_clear()


@pytest.mark.parametrize(
    ("seconds", "timed", "fastest"),
    [
        ([2.0, 0.51, 2.0, 0.5, 3.0, 0.5, 9.0], 6, 0.5),  # a busy moment at the start: until three agree
        ([0.5, 0.5, 0.5, 9.0], 3, 0.5),
        ([4.0, 1.0, 3.0, 2.0, 5.0, 6.0, 7.0, 8.0, 9.0], 8, 1.0),  # never: the fastest of the most
    ],
)
def test_products_are_timed_until_the_fastest_agree(
    monkeypatch: pytest.MonkeyPatch, seconds: list[float], timed: int, fastest: float
) -> None:
    moments = iter([moment for each in seconds for moment in (0.0, each)])
    monkeypatch.setattr(device, "MATMULS", 3)
    monkeypatch.setattr(device, "MOST_MATMULS", 8)
    monkeypatch.setattr(device.time, "perf_counter", lambda: next(moments))
    assert matmul_rate(CPU, torch.float32) == 2 * 1024**3 / fastest
    assert len(list(moments)) == 2 * (len(seconds) - timed)
