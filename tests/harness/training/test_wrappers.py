"""Recomputed and compiled blocks, and few logits at a time: they save memory or time and train the same model."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from harness.model import loss
from harness.training.train import train
from harness.training.trainer import Trainer
from tests.harness.training.tiny import run_config


@pytest.mark.parametrize("mixer", ["gdn2", "mamba3_mimo", "attention"])
def test_recomputed_activations_give_the_same_bits(mixer: str, tmp_path: Path, small_data: Path) -> None:
    plain = train(run_config(small_data, mixer, steps=3), tmp_path / "plain")
    recomputed = train(run_config(small_data, mixer, steps=3, recompute=True), tmp_path / "recomputed")
    assert recomputed == replace(plain, tokens_per_second=recomputed.tokens_per_second)


def saved_numbers(model: nn.Module, tokens: Tensor) -> int:
    """How many numbers the forward pass saves for the backward pass, parameters left out."""
    parameters, saved = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in parameters:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.hidden(tokens)
    return sum(saved.values())


def test_recomputing_saves_the_inputs_of_blocks_and_nothing_inside_them(tmp_path: Path, small_data: Path) -> None:
    tokens = torch.zeros(2, 64, dtype=torch.long)
    plain, lean = (
        saved_numbers(Trainer(run_config(small_data, recompute=recompute), tmp_path / str(recompute)).model, tokens)
        for recompute in (False, True)
    )
    assert lean < plain / 10


@pytest.mark.parametrize("recompute", [False, True])
def test_compiled_blocks_train_the_same_model(
    recompute: bool, tmp_path: Path, small_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # All of torch.compile but its code generator, which would take minutes on a CPU.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    torch._dynamo.reset()
    counters.clear()
    plain = train(run_config(small_data, "attention", steps=2), tmp_path / "plain")
    assert not counters["frames"]
    config = run_config(small_data, "attention", steps=2, compile=True, recompute=recompute)
    compiled = train(config, tmp_path / "compiled")
    assert counters["frames"]["ok"] > 0 and compiled.run == plain.run
    # Sums in another order, over two steps.
    assert abs(compiled.train_loss - plain.train_loss) < 1e-4
    # Weights have the same names: a run without compilation reads the checkpoint.
    assert Trainer(run_config(small_data, "attention", steps=2), tmp_path / "compiled").step == 2
    torch._dynamo.reset()


def test_a_step_makes_few_logits_at_a_time(tmp_path: Path, small_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(run_config(small_data, steps=2), tmp_path / "whole")
    monkeypatch.setattr(loss, "LIVE_LOGITS", 4096 * 16)
    few = train(run_config(small_data, steps=2), tmp_path / "few")
    assert abs(few.train_loss - whole.train_loss) < 1e-5 and few.weights_sha256 != whole.weights_sha256
