"""The kernel of gradients inside chunks: launch and cost. Its numbers are tested with the operator, in test_chunk."""

from mixers.gdn2.kernels.gradients import CHUNK_GRADIENTS
from tests.mixers.gdn2.kernels.launches import blocks, launch


def test_inputs_of_the_key_side_get_gradients_in_their_own_shapes() -> None:
    arguments = launch(CHUNK_GRADIENTS).arguments
    for name in "qkgb":
        assert arguments[f"d{name}"].shape == arguments[name].shape


def test_flops_are_those_of_four_products_below_the_diagonal() -> None:
    assert launch(CHUNK_GRADIENTS).flops == 2 * 4 * 64 * 64 * 64  # one chunk of 64, two heads of 64


def test_blocks_depend_on_the_size() -> None:
    assert blocks(CHUNK_GRADIENTS) == {(16, 4, 1), (32, 8, 1)}
    assert blocks(CHUNK_GRADIENTS, K=16) == {(16, 4, 1), (16, 8, 1)}
