"""Launches of a training step's kernels, recorded without a GPU."""

import torch

from mixers.gdn2 import gated_delta_rule_2
from mixers.gdn2.kernels.launch import Kernel, Launch, recording
from tests.mixers.gdn2.cases import inputs


def launch(kernel: Kernel, dtype: torch.dtype = torch.bfloat16, K: int = 64, V: int = 64) -> Launch:
    """Return the launch of a kernel for one chunk of 64 tokens and two heads."""
    x = {name: t.to("meta").requires_grad_() for name, t in inputs(64, heads=2, K=K, V=V, dtype=dtype).items()}
    with recording() as launches:
        o, _ = gated_delta_rule_2(**x, backend="triton")
        o.backward(torch.empty_like(o))
    (found,) = [made for made in launches if made.kernel is kernel]
    return found


def blocks(kernel: Kernel, capability: int = 90, **options: object) -> set[tuple[int, ...]]:
    """Return block sizes, warps and stages of all configurations for a GPU generation."""
    candidates = kernel.candidates(launch(kernel, **options).arguments, capability)
    return {(*candidate.kwargs.values(), candidate.num_warps, candidate.num_stages) for candidate in candidates}
