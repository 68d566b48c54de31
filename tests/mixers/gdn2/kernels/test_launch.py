"""Launches of kernels: block sizes, recording, FLOPs and bytes, configurations that do not fit a GPU, and tuning."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
import triton

from mixers.gdn2 import gated_delta_rule_2
from mixers.gdn2.kernels import launch as module
from mixers.gdn2.kernels.launch import Kernel, Launch, Resources, forcing, padded, recording
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


NARROW, WIDE, SPILLING, HUGE = (triton.Config({"BV": block}, num_warps=4, num_stages=1) for block in (16, 32, 64, 128))


class FakeKernel:
    """A compiled-kernel stand-in on two pretended GPUs: records launches, and a block size is its time in ms.

    With many programs, wide blocks are the fast ones.
    """

    __name__ = "pretended"
    cache_key = "source"

    def __init__(self, patch: pytest.MonkeyPatch, cache: object):
        self.launched: list[tuple[int, int]] = []
        self.timed: list[int] = []
        self.device = 0
        patch.setattr(module, "interpreted", lambda: False)
        patch.setattr(torch.cuda, "device", self.on)
        patch.setattr(torch.cuda, "current_device", lambda: self.device)
        patch.setattr(torch.cuda, "get_device_name", lambda: "pretended GPU")
        patch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
        limit = SimpleNamespace(shared_memory_per_block_optin=1000)
        patch.setattr(torch.cuda, "get_device_properties", lambda device: limit)
        patch.setattr(module, "do_bench", self.time)
        patch.setenv("TRITON_CACHE_DIR", str(cache))
        module._capability.cache_clear()

    @contextmanager
    def on(self, device: torch.device):
        before, self.device = self.device, device.index or 0
        yield
        self.device = before

    def time(self, launch) -> float:
        launch()
        device, block = self.launched.pop()
        self.timed.append(block)
        return -block if self.programs > 100 else block

    def warmup(self, *, BV: int, **arguments: object) -> SimpleNamespace:
        shared = SimpleNamespace(shared=2000 if HUGE.kwargs["BV"] == BV else 10)
        return SimpleNamespace(metadata=shared, n_spills=8 * (BV == 64), _init_handles=lambda: None)

    def __getitem__(self, grid):
        def launch(*, BV: int, **arguments: object) -> None:
            (self.programs,) = grid({"BV": BV})
            self.launched.append((self.device, BV))

        return launch


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch, tmp_path) -> FakeKernel:
    return FakeKernel(monkeypatch, tmp_path)


def pretended_kernel(function: FakeKernel) -> Kernel:
    return Kernel(function, lambda arguments, capability: [NARROW, WIDE, SPILLING, HUGE], lambda arguments: 0)


def call(kernel: Kernel, programs: int, **options: object) -> None:
    kernel(lambda meta: (programs,), x=torch.empty(2), K=16, **options)


def test_tuning_times_what_fits_once_per_number_of_programs_in_powers_of_two(pretended: FakeKernel) -> None:
    kernel = pretended_kernel(pretended)
    for programs in (4, 3, 500, 512, 4):
        call(kernel, programs)
    assert pretended.timed == [16, 32, 16, 32]  # neither what spills nor what is too large
    assert [block for _, block in pretended.launched] == [16, 16, 32, 32, 16]


def test_a_check_on_a_few_tokens_does_not_decide_for_training(pretended: FakeKernel) -> None:
    kernel = pretended_kernel(pretended)
    call(kernel, 2)  # such as the check of gradients, on 75 tokens
    call(kernel, 4096)
    assert pretended.launched == [(0, 16), (0, 32)]


def test_tuning_is_read_from_disk_by_the_next_process(pretended: FakeKernel) -> None:
    call(pretended_kernel(pretended), 500)
    pretended.timed.clear()
    call(pretended_kernel(pretended), 500)
    assert pretended.timed == [] and pretended.launched == [(0, 32)] * 2
    call(pretended_kernel(pretended), 500, scale=2)  # another option is another kernel
    assert pretended.timed == [16, 32]


def test_a_launch_is_on_the_device_of_its_tensors(pretended: FakeKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: asked.append(device) or (9, 0))
    kernel = pretended_kernel(pretended)
    for index in (1, 0):
        placed = type("Placed", (torch.Tensor,), {"device": torch.device("cuda", index)})
        kernel(lambda meta: (4,), x=torch.empty(2).as_subclass(placed), K=16)
    assert pretended.launched == [(1, 16), (0, 16)]
    assert [device.index for device in asked] == [1, 0] and pretended.device == 0


def test_a_forced_configuration_is_launched_without_tuning(pretended: FakeKernel) -> None:
    kernel = pretended_kernel(pretended)
    with forcing({"pretended": SPILLING}):
        call(kernel, 4)
    call(kernel, 4)
    assert [block for _, block in pretended.launched] == [64, 16] and pretended.timed == [16, 32]


def test_no_configuration_that_fits_is_an_error_with_a_way_out(pretended: FakeKernel) -> None:
    kernel = Kernel(pretended, lambda arguments, capability: [HUGE], lambda arguments: 0)
    with pytest.raises(RuntimeError, match=r"no configuration fits this GPU at .*'K': 16.*; use backend='chunked'"):
        call(kernel, 4)
