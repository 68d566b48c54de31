"""The smallest mixer that passes the kit, from which the tests derive mixers that break one promise each."""

from typing import Any

import torch
from torch import Tensor, nn

from mixers.conformance import Finding, conform
from mixers.interface import Cost, Mixer, MixerConfig, State
from mixers.parts.common import accumulator_dtype

D = 16


class DecayConfig(MixerConfig):
    """No options."""


class Decay(Mixer):
    """A gated sum per channel: s_t = σ(a) · s_{t-1} + x_t W, y_t = s_t · (x_t G)."""

    config_class = DecayConfig

    def __init__(self, d_model: int, config: DecayConfig):
        super().__init__(d_model, config)
        self.write = nn.Linear(d_model, d_model, bias=False)
        self.gate = nn.Linear(d_model, d_model, bias=False)
        self.decay = nn.Parameter(torch.zeros(d_model))

    def mix(self, x: Tensor, state: State | None, return_state: bool) -> tuple[Tensor, State | None]:
        written, gate = self.write(x), self.gate(x)
        written = written.to(accumulator_dtype(written))
        s = written.new_zeros(x.shape[0], self.d_model) if state is None else state["recurrent"]
        sums = []
        for token in written.unbind(1):
            s = self.decay.sigmoid() * s + token
            sums.append(s)
        y = (torch.stack(sums, 1) * gate).to(gate.dtype)
        return y, {"recurrent": s} if return_state else None

    def cost(self, seq_len: int) -> Cost:
        products = self.write.weight.numel() + self.gate.weight.numel()
        return Cost.recurrent(self.parameter_count(), products, self.d_model, 3)


def findings(cls: type[Mixer], **options: Any) -> dict[str, Finding]:
    """Run the kit on a class derived from Decay. Returns its findings by check."""
    results = conform(lambda: cls(D, DecayConfig()), **{"long_tokens": 512} | options)
    return {finding.check: finding for finding in results}


def failed(cls: type[Mixer]) -> set[str]:
    """Return the names of the checks that a class fails."""
    return {name for name, finding in findings(cls).items() if finding.status == "fail"}
