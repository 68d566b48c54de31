"""A short convolution as a token mixer of its own, for models that put one before every mixer.

    y_t = SiLU(Σ_i w_i ⊙ x_{t-i}),  i = 0 … W-1                                    depthwise and causal

Based (arXiv 2402.18668) puts a gated convolution before every mixer: conv(x) ⊙ (P x + b) with a dense D × D matrix P.
Here the convolution stands alone. It shows every mixer the last tokens in the same way, at W weights per channel. The
gated form has D² weights more and is BaseConv, the sequence mixer of Zoology (arXiv 2312.04927): a comparison would
measure two mixers at once.
"""

from __future__ import annotations

from torch import Tensor

from mixers.backends import FLA, TORCH, activation_dtype
from mixers.interface import Cost, Mixer, MixerConfig, State
from mixers.parts.common import ShortConvolution

CONV_TAIL = "local_conv"
"""Key of the state."""


class LocalConvolution(Mixer):
    """The convolution, without bias. State: the last width - 1 inputs, [B, width - 1, D], under CONV_TAIL."""

    config_class = MixerConfig
    backends = (FLA, TORCH)

    def __init__(self, d_model: int, width: int):
        super().__init__(d_model, MixerConfig())
        self.conv1d = ShortConvolution(d_model, width)

    def mix(self, x: Tensor, state: State | None, return_state: bool) -> tuple[Tensor, State | None]:
        """Convolve the tokens of x; see `Mixer.forward`."""
        x = x.to(activation_dtype(x))  # no linear layer comes before it that would do so under autocast
        y, tail = self.conv1d(x, None if state is None else state[CONV_TAIL], self.implementation(x))
        return y, {CONV_TAIL: tail} if return_state else None

    def cost(self, seq_len: int) -> Cost:
        """Return the cost: one multiply-add per weight, and a tail but no recurrent state."""
        weights = self.conv1d.weight.numel()
        return Cost.recurrent(weights, weights, 0, 0, 2 * (weights - self.d_model))
