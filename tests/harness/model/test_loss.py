"""Cross-entropy in chunks equals the plain one and never holds more logits than its limit."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from harness.model import loss
from harness.model.loss import linear_cross_entropy, rows_at_once, scored_cross_entropy

ROWS, WIDTH, VOCAB = 50, 6, 96


def inputs(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(ROWS, WIDTH, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(VOCAB, WIDTH, generator=generator).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(0, VOCAB, (ROWS,), generator=generator)


def plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    logits = hidden @ weight.t()
    return F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), targets, reduction="sum")


@pytest.fixture(autouse=True)
def _seven_rows_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "LIVE_LOGITS", 7 * VOCAB + 5)


# Sums of up to 96 terms in a different order, rounded at 6e-8 and 1e-16.
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_loss_and_gradients_equal_those_of_all_logits_at_once(dtype: torch.dtype, rtol: float) -> None:
    chunked, expected = [], []
    for function, results in ((linear_cross_entropy, chunked), (plain, expected)):
        hidden, weight, targets = inputs(dtype)
        value = function(hidden, weight, targets)
        (value * 0.3).backward()
        results += [value.detach(), hidden.grad, weight.grad]
    for ours, theirs in zip(chunked, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=rtol, atol=rtol)


def test_autocast_rounds_where_the_plain_loss_does() -> None:
    chunked, expected = [], []
    for function, results in ((linear_cross_entropy, chunked), (plain, expected)):
        hidden, weight, targets = inputs(torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            value = function(hidden, weight, targets)
        value.backward()
        assert value.dtype == torch.float32 and weight.grad.dtype == torch.float32
        results += [value.detach(), hidden.grad, weight.grad]
    torch.testing.assert_close(chunked[0], expected[0], rtol=1e-6, atol=0)
    # One side sums the weight's gradient over chunks in bf16, the other in one bf16 product; bf16 rounds at 2^-8.
    for ours, theirs in zip(chunked[1:], expected[1:], strict=True):
        assert (ours - theirs).norm() < 2**-8 * theirs.norm()


@pytest.mark.parametrize("frozen", ["hidden", "weight", "both"])
def test_a_frozen_input_gets_no_gradient(frozen: str) -> None:
    hidden, weight, targets = inputs(torch.float64)
    expected = torch.autograd.grad(plain(hidden, weight, targets), [hidden, weight])
    hidden.requires_grad_(frozen == "weight")
    weight.requires_grad_(frozen == "hidden")
    value = linear_cross_entropy(hidden, weight, targets)
    assert value.requires_grad == (frozen != "both")
    if frozen != "both":
        value.backward()
    for tensor, gradient in zip((hidden, weight), expected, strict=True):
        assert (tensor.grad is None) == (not tensor.requires_grad)
        if tensor.requires_grad:
            torch.testing.assert_close(tensor.grad, gradient, rtol=1e-12, atol=1e-12)


class LargestLogits(TorchDispatchMode):
    """Records the rows of the largest matrix with as many columns as the vocabulary."""

    rows = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.dim() == 2 and out.shape[1] == VOCAB:
            self.rows = max(self.rows, out.shape[0])
        return out


def test_no_more_rows_of_logits_exist_than_the_limit() -> None:
    assert rows_at_once(VOCAB) == 7
    hidden, weight, targets = inputs(torch.float32)
    with LargestLogits() as seen:
        linear_cross_entropy(hidden, weight, targets).backward()
    # The transposed weight of the head also has VOCAB columns, but fewer rows.
    assert seen.rows == 7 > WIDTH
    with LargestLogits() as seen:
        plain(*inputs(torch.float32)).backward()
    assert seen.rows == ROWS


def test_a_vocabulary_larger_than_the_limit_still_gets_one_row() -> None:
    assert rows_at_once(10**9) == 1


def test_zero_rows_give_zero_loss() -> None:
    hidden, weight, _ = inputs(torch.float32)
    value = linear_cross_entropy(hidden[:0], weight, torch.zeros(0, dtype=torch.long))
    value.backward()
    assert value == 0 and not weight.grad.any()


def test_hits_are_rows_whose_largest_logit_is_the_targets_and_counting_them_changes_nothing() -> None:
    hidden, weight, targets = inputs(torch.float32)
    best = (hidden @ weight.t()).argmax(-1)
    targets = torch.where(torch.arange(ROWS) % 3 == 0, best, targets)
    results = []
    for scored in (False, True):
        if scored:
            value, hits = scored_cross_entropy(hidden, weight, targets)
            assert hits.dtype == torch.int64 and int(hits) == int((best == targets).sum()) >= ROWS // 3
            assert not hits.requires_grad
        else:
            value = linear_cross_entropy(hidden, weight, targets)
        results.append([value, *torch.autograd.grad(value, [hidden, weight])])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    with torch.no_grad():
        assert int(scored_cross_entropy(hidden[:0], weight, targets[:0])[1]) == 0
