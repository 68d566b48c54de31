"""A trial gives every precision the same weights and tokens, and measures errors without losing a NaN."""

import math

import pytest
import torch

from mixers import build_mixer
from mixers.conformance import SMALL
from mixers.conformance.trial import Trial, Violation, bounded, relative_error, state_kinds


def trial(name: str) -> Trial:
    generator = torch.Generator().manual_seed(0)
    return Trial(lambda: build_mixer(name, 64, SMALL[name]), torch.device("cpu"), "auto", 512, generator)


def test_every_mixer_of_a_trial_has_the_same_weights_none_of_them_constant() -> None:
    trying = trial("mamba2")
    exact, single = trying.mixer().state_dict(), trying.mixer(torch.float32).state_dict()
    assert all(torch.equal(exact[name], weight.double()) for name, weight in single.items())
    assert all(weight.unique().numel() > 1 for weight in exact.values())  # D starts at 1 everywhere


def test_tokens_are_exact_in_bf16() -> None:
    x = trial("gdn2").tokens(2, 9)
    assert x.dtype == torch.float64 and torch.equal(x.bfloat16().double(), x)


@pytest.mark.parametrize(
    ("name", "sums", "growing"),
    [
        ("gdn2", {"recurrent"}, set()),
        ("mamba2", {"ssm"}, set()),
        ("mamba3_siso", {"ssm", "angle", "k"}, set()),  # the last key is rotated by the sum of all angles
        ("attention", set(), {"k", "v"}),
    ],
)
def test_sums_growing_caches_and_tails_are_told_apart(name: str, sums: set[str], growing: set[str]) -> None:
    assert state_kinds(trial(name)) == (sums, growing)


def test_errors_are_relative_and_nan_is_the_largest() -> None:
    expected = torch.tensor([3.0, 4.0])
    assert relative_error(expected * 1.5, expected) == pytest.approx(0.5)
    assert relative_error(expected, torch.zeros(2)) == pytest.approx(5.0)
    with pytest.raises(Violation, match=r"shapes differ: \[2\] and \[1, 2\]"):
        relative_error(expected, expected[None])
    measured, bound, where = bounded([(0.1, "a"), (math.nan, "b"), (7.0, "c")], 1.0)
    assert math.isnan(measured) and (bound, where) == (1.0, "b")
