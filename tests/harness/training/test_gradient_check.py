"""The check of kernels' gradients before training, with Triton kernels under their interpreter on a CPU."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.model.language_model import ModelConfig, build_model
from harness.training import gradient_check
from harness.training.gradient_check import GradientsWrong, check_gradients
from mixers.interface import Mixer
from tests.mixers.interpreter import upstream_kernels

KERNELS = ModelConfig(
    layout="hybrid",
    mixer="gdn2",
    mixer_options={"heads": 1, "head_dim": 16},
    attention_options={"heads": 2},
    d_model=16,
    mlp_widths=[32, 32, 32, 32],
    vocab_size=64,
)


@pytest.fixture(autouse=True)
def one_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradient_check, "CHECK_TOKENS", 20)  # the interpreter is slow


def on_kernels() -> nn.Module:
    """A model whose recurrent blocks run on the Triton kernels; on a CPU Triton interprets them."""
    model = build_model(KERNELS, 0)
    for block in model.blocks[::2]:
        block.mixer.backend = "triton"
    return model


def test_gradients_of_kernels_are_compared_with_those_of_torch_before_training() -> None:
    assert check_gradients(build_model(KERNELS, 0), torch.device("cpu"), torch.float32) == []
    with upstream_kernels():  # the convolutions are fla's
        (line,) = check_gradients(on_kernels(), torch.device("cpu"), torch.float32)  # one line for two blocks of a kind
    assert line.startswith("gdn2: triton, largest relative error of a gradient ")


def test_the_convolution_before_a_mixer_is_compared_too() -> None:
    model = build_model(KERNELS.model_copy(update={"leading_conv": 3}), 0)
    for block in model.blocks:
        block.conv.backend = "fla"
    with upstream_kernels():
        (line,) = check_gradients(model, torch.device("cpu"), torch.float32)
    assert line.startswith("convolution: fla, largest relative error of a gradient ")


def test_a_kernel_with_a_wrong_gradient_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = on_kernels()
    operate = type(model.blocks[0].mixer).operate

    def slightly_wrong(self: Mixer, q: Tensor, *rest: Any) -> Any:
        if rest[-1] == "triton" and q.requires_grad:
            q.register_hook(lambda gradient: 1.2 * gradient)
        return operate(self, q, *rest)

    monkeypatch.setattr(type(model.blocks[0].mixer), "operate", slightly_wrong)
    message = r"gdn2: triton on cpu computes a wrong gradient of .* relative error 0\."
    with upstream_kernels(), pytest.raises(GradientsWrong, match=message):
        check_gradients(model, torch.device("cpu"), torch.float32)
