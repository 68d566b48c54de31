"""The kernel of gradients through states: launch and cost. Its numbers are tested with the operator, in test_chunk."""

import torch

from mixers.gdn2.kernels.state_gradients import STATE_GRADIENTS
from tests.mixers.gdn2.kernels.launches import blocks, launch


def test_inputs_of_the_value_side_get_gradients_in_their_own_shapes() -> None:
    arguments = launch(STATE_GRADIENTS).arguments
    for name in "vw":
        assert arguments[f"d{name}"].shape == arguments[name].shape


def test_flops_are_those_of_da_and_dt_and_of_three_products_with_states() -> None:
    # One chunk of 64; two key and value heads of 64.
    assert launch(STATE_GRADIENTS).flops == 2 * 64 * (4 * 64 * 64 + 6 * 64 * 64)


def test_blocks_depend_on_the_gpu_the_dtype_and_the_size() -> None:
    assert blocks(STATE_GRADIENTS) == {(32, 4, 2), (32, 4, 3), (64, 4, 2)}
    assert blocks(STATE_GRADIENTS, dtype=torch.float32) == {(32, 4, 1)}
    assert blocks(STATE_GRADIENTS, capability=80) == {(16, 4, 1), (16, 4, 2)}
    assert blocks(STATE_GRADIENTS, V=48) == {(32, 4, 2), (32, 4, 3)}
    assert blocks(STATE_GRADIENTS, V=16) == {(16, 4, 2), (16, 4, 3)}
