"""A mixer on trial: fixed weights in any precision, test tokens, and the measurement of errors."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from mixers.backends import TORCH
from mixers.interface import Mixer, State

# float64 rounds at 1e-16. Summing in another order costs about 1e-15, or 1e-13 after a chunk's inverse. A state or a
# position that is off by one costs 1e-3, and a detour through fp32 costs 1e-7.
EXACT = 1e-10
# bf16 rounds at 2^-8. An output passes about ten roundings: projection, convolution, gate, norm, projection.
BF16 = 12 * 2**-8
ACCUMULATORS = ("recurrent", "ssm")
"""Names that built-in mixers give the parts of a state that sum up the past."""

Outcome = tuple[float | None, float | None, str]
"""measured, bound, detail. The check passes if measured ≤ bound, or if both are None."""


class Violation(Exception):
    """A broken promise that no figure measures."""


class Unserved(Exception):
    """The reason why a check cannot run on this machine."""


class Trial:
    """A mixer with fixed weights in any precision, and the tokens it is tried on.

    Raises ValueError if `backend` does not serve bf16 on the device, or if the mixer has no form in torch.
    """

    def __init__(
        self,
        build: Callable[[], Mixer],
        device: torch.device,
        backend: str,
        long_tokens: int,
        generator: torch.Generator,
    ):
        self.build, self.device, self.backend, self.long_tokens = build, device, backend, long_tokens
        self.generator = generator
        first = build()
        with torch.no_grad():
            for p in first.parameters():
                p += 0.1 * torch.randn(p.shape, generator=generator).to(p)
        self.weights = first.state_dict()
        self.d_model, self.backends, self.config = first.d_model, first.backends, first.config
        first.backend = backend
        first.serving(device, torch.bfloat16)
        first.backend = TORCH.name
        try:
            first.serving(device, torch.float64)
        except ValueError as error:
            raise ValueError(f"{error}; every check compares with a form in torch, so add one") from None

    def mixer(self, dtype: torch.dtype = torch.float64, backend: str = TORCH.name) -> Mixer:
        """Return a new mixer with the trial's weights in `dtype`, to be computed by `backend`."""
        mixer = self.build()
        mixer.load_state_dict(self.weights)
        mixer.backend = backend
        return mixer.to(self.device, dtype)

    def tokens(self, batch: int, steps: int, dtype: torch.dtype = torch.float64) -> Tensor:
        """Return noise [batch, steps, D] that bf16 represents exactly, so that all precisions see the same input."""
        x = torch.randn(batch, steps, self.d_model, generator=self.generator).bfloat16()
        return x.to(self.device, dtype)

    def both(self) -> Iterable[tuple[Mixer, torch.dtype]]:
        """Yield the torch form in float64, and the chosen backend as it trains: fp32 weights, bf16 activations.

        Each comes with the dtype of its activations.
        """
        yield self.mixer(), torch.float64
        yield self.mixer(torch.float32, self.backend), torch.bfloat16


def demand(condition: bool, message: str) -> None:
    """Raise Violation with `message` unless the condition holds."""
    if not condition:
        raise Violation(message)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Return ‖actual - expected‖ / ‖expected‖ in float64, or the numerator alone if `expected` is zero."""
    actual, expected = actual.detach().double(), expected.detach().double()
    demand(actual.shape == expected.shape, f"shapes differ: {list(actual.shape)} and {list(expected.shape)}")
    scale = expected.norm()
    return float((actual - expected).norm() / torch.where(scale > 0, scale, 1.0))


def bounded(errors: Iterable[tuple[float, str]], bound: float) -> Outcome:
    """Return the outcome of the largest of several named errors. NaN counts as larger than any number."""
    measured, where = max(errors, key=lambda e: (e[0] != e[0], e[0]))
    return measured, bound, where


def autocast(x: Tensor) -> torch.autocast:
    """Return bf16 autocast if x is bf16, and a context without effect otherwise."""
    return torch.autocast(x.device.type, torch.bfloat16, enabled=x.dtype == torch.bfloat16)


def state_after(mixer: Mixer, x: Tensor, state: State | None = None) -> State:
    """Return the state after x, computed without gradients and under `autocast`."""
    with torch.no_grad(), autocast(x):
        return mixer(x, state, return_state=True)[1]


def floating(state: State) -> State:
    """Return the floating-point tensors of a state."""
    return {key: value for key, value in state.items() if value.is_floating_point()}


def state_bytes(state: State) -> int:
    """Return the size of a state in bytes."""
    return sum(v.numel() * v.element_size() for v in state.values())


def state_kinds(trial: Trial) -> tuple[set[str], set[str]]:
    """Return the keys of the state's tensors that sum up the past, and the keys of those that grow with its length.

    The remaining tensors are tails and windows. After 64 tokens a sum still depends on the first token; the tail of a
    convolution or a copy of the last token does not.
    """
    mixer, x = trial.mixer(), trial.tokens(1, 64)
    other = x.clone()
    other[:, 0] += 1
    state, changed, shorter = (floating(state_after(mixer, t)) for t in (x, other, x[:, :48]))
    growing = {key for key in state if state[key].shape != shorter[key].shape}
    sums = {key for key in state if key in ACCUMULATORS or not torch.equal(state[key], changed[key])}
    return sums - growing, growing
