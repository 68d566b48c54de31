"""Launches of kernels: block sizes, recording, FLOPs and bytes, and configurations that do not fit a GPU."""

import pytest
import torch

from mixers.gdn2 import gated_delta_rule_2
from mixers.gdn2.kernels.launch import Launch, Resources, padded, recording
from tests.mixers.gdn2.cases import inputs


def decode(steps: int) -> list[Launch]:
    x = {name: t.to("meta") for name, t in inputs(steps, batch=2, value_heads=3, K=16, V=40).items()}
    with recording() as launches, torch.no_grad():
        gated_delta_rule_2(**x, output_final_state=True, backend="triton")
    return launches


def test_a_block_is_a_power_of_two_of_at_least_16() -> None:
    assert [padded(size) for size in (1, 16, 17, 80, 256)] == [16, 16, 32, 128, 256]


def test_a_recorded_launch_counts_its_flops_and_the_bytes_of_its_tensors() -> None:
    (launch,) = decode(3)
    tokens, state = 2 * 3, 3 * 16 * 40
    assert launch.flops == 7 * tokens * state
    vectors = 4 * tokens * (4 * 16 + 3 * 3 * 40)  # q, k, g, b; v, w, o of three value heads; all in fp32
    assert launch.moved == vectors + 2 * 2 * 4 * state + 3 * 8  # the state in and out, and offsets of two sequences


def test_scratch_of_a_program_does_not_count_as_bytes_moved() -> None:
    x = {name: t.to("meta") for name, t in inputs(20, K=16, V=16).items()}
    with recording() as launches:
        gated_delta_rule_2(**{name: t.requires_grad_() for name, t in x.items()}, backend="triton")
    intra = launches[0]
    scratch = [intra.arguments[name] for name in intra.kernel.scratch]
    assert scratch and intra.moved < sum(
        t.numel() * t.element_size() for t in intra.arguments.values() if isinstance(t, torch.Tensor)
    ) - sum(t.numel() for t in scratch)


def test_recording_stops_with_its_block_even_after_an_error() -> None:
    with pytest.raises(KeyError), recording():
        raise KeyError
    with recording() as launches:
        pass
    assert launches == [] and len(decode(1)) == 1


def test_a_configuration_fits_if_it_spills_nothing_and_its_shared_memory_is_there() -> None:
    assert Resources(200, 0, 1024, {}).fit(1024)
    assert not Resources(200, 0, 1025, {}).fit(1024)
    assert not Resources(200, 8, 1024, {}).fit(1024)
