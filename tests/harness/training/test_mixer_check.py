"""Mixers that training would not notice are refused before it: broadcasts, look-ahead, outputs that are not finite."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from harness.model.language_model import build_model
from harness.training.mixer_check import CUT, MixerWrong, check_mixers
from harness.training.trainer import Trainer
from mixers.gated_deltanet import GatedDeltaNet
from tests.harness.training.tiny import TINY, run_config

CPU = torch.device("cpu")


def broken(monkeypatch: pytest.MonkeyPatch, change: Callable[[Tensor], Tensor]) -> None:
    """Let Gated DeltaNet return its output after a change."""
    mix = GatedDeltaNet.mix

    def changed(self, x, state, return_state):
        y, after = mix(self, x, state, return_state)
        return change(y), after

    monkeypatch.setattr(GatedDeltaNet, "mix", changed)


def leak(y: Tensor) -> Tensor:
    """Add a hundredth of the next token's output."""
    return y + 0.01 * torch.cat([y[:, 1:], torch.zeros_like(y[:, :1])], dim=1)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda y: y[:, :1], r"its output has the shape \[2, 1, 16\], its input \[2, 75, 16\]"),
        (lambda y: y[:, :1].expand_as(y), f"its outputs from token {CUT} on do not change with their inputs"),
        (lambda y: y.flip(1), "it is not causal: outputs before token 33 change by"),
        (lambda y: y + y.mean(1, keepdim=True), "it is not causal"),
        (leak, "it is not causal: outputs before token 33 change by 0.00"),
        (lambda y: y * math.nan, "its outputs are not finite at the initial weights"),
    ],
    ids=["shorter", "broadcast", "reversed", "mean over the text", "leak", "nan"],
)
def test_a_mixer_that_breaks_the_interface_is_named_before_training(
    tmp_path: Path, small_data: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Tensor], Tensor], fault: str
) -> None:
    broken(monkeypatch, change)
    with pytest.raises(MixerWrong, match=f"^gated_deltanet: {fault}.*; correct it, `run.py check gated_deltanet`"):
        Trainer(run_config(small_data, "gated_deltanet"), tmp_path)
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mixer", TINY)
def test_every_built_in_mixer_passes(small_data: Path, mixer: str, dtype: torch.dtype) -> None:
    check_mixers(build_model(run_config(small_data, mixer).model, 0), CPU, dtype)


def test_a_mixer_whose_outputs_start_at_zero_passes(small_data: Path) -> None:
    model = build_model(run_config(small_data, "gated_deltanet").model, 0)
    for block in model.blocks:
        nn.init.zeros_(block.mixer.o_proj.weight)
    check_mixers(model, CPU, torch.float32)
