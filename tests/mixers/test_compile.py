"""torch.compile traces a block of any mixer's torch form, and GDN-2's kernels, as one graph that computes the same."""

from functools import partial

import pytest
import torch
import torch._dynamo

from harness.experiments.matching import matched_config
from harness.model.language_model import Block, build_model
from mixers.gdn2 import gated_delta_rule_2

pytestmark = pytest.mark.long

MIXERS = ("gdn2", "gated_deltanet", "kda", "mamba2", "mamba3_siso", "mamba3_mimo", "attention")
TOKENS = 80  # more than one chunk of any mixer, the last one padded


def by_kernels(operator, *tensors, **options):
    return operator(*tensors, **(options | {"backend": "triton"}))


def block(mixer: str) -> Block:
    layout = "attention" if mixer == "attention" else "recurrent"
    return build_model(matched_config("cpu-600k", layout, mixer), seed=0).blocks[0]


def inputs() -> torch.Tensor:
    return torch.randn(2, TOKENS, 64, requires_grad=True)


@pytest.fixture(autouse=True)
def _nothing_compiled_before() -> None:
    torch._dynamo.reset()


@pytest.mark.parametrize("mixer", MIXERS)
def test_a_block_is_one_graph(mixer: str) -> None:
    graphs = torch._dynamo.explain(block(mixer).forward)(inputs(), None, None, False)
    assert (graphs.graph_count, graphs.graph_break_count) == (1, 0), [reason.reason for reason in graphs.break_reasons]


@pytest.mark.parametrize(
    ("mixer", "backend"), [("gated_deltanet", "torch"), ("mamba3_mimo", "torch"), ("gdn2", "triton")]
)
def test_the_graph_computes_what_the_block_does(mixer: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Without the code generator, which sums in another order, the operations are the same, so the bits are equal.
    built, x = block(mixer), inputs()
    if backend == "triton":
        # The convolutions and the norm run on fla's kernels beside ours, which the interpreter does not serve.
        built.mixer.implementation = lambda x: "torch"
        monkeypatch.setattr("mixers.gdn2.layer.gated_delta_rule_2", partial(by_kernels, gated_delta_rule_2))
    parts = [x, *built.parameters()]
    eager, _ = built(x, None, None, False)
    traced, _ = torch.compile(built.forward, backend="aot_eager", fullgraph=True)(x, None, None, False)
    assert torch.equal(eager, traced)
    wanted = torch.autograd.grad(eager.square().sum(), parts)
    found = torch.autograd.grad(traced.square().sum(), parts)
    assert all(torch.equal(a, b) for a, b in zip(wanted, found, strict=True))
