"""Decoding: the speed of reading a context, the speed of decoding after it, and the size of the state.

Reading works as in `harness.lm.generate`, with as many rows at once as it takes. Decoding is greedy, and the chosen
tokens stay on the device; stopping, sampling and text are not timed. Tokens are random and models are fresh, since
weights do not change the amount of computation.
"""

from __future__ import annotations

import torch
from pydantic import Field, PositiveInt, field_validator
from torch import Tensor

from harness.experiments.schema import TrainConfig
from harness.lm.generate import tokens_at_once
from harness.model.language_model import LanguageModel, ModelState
from harness.records.record import Measurement
from harness.training.device import recipe_dtype
from suites.interface import Progress, Suite, SuiteConfig, silent
from suites.registry import register_suite
from suites.shared.timing import Shape, check_distinct_shapes, median_stderr, time_calls, unless_out_of_memory


class Config(SuiteConfig):
    """Options of the decode suite."""

    shapes: list[Shape] = Field(
        default=[Shape(batch=b, length=n) for b in (1, 16) for n in (2048, 8192, 32768)], min_length=1
    )
    """Batches of contexts."""
    new_tokens: PositiveInt = 64
    """Tokens to decode per window, after the context."""
    windows: int = Field(default=5, ge=2)
    """Timed windows per shape. Each reads its context anew; one untimed window runs first."""

    _distinct = field_validator("shapes")(check_distinct_shapes)


@register_suite("decode", title="tokens per second of reading and decoding, and bytes of state, of a fresh model")
class Decode(Suite):
    """Reading and decoding with one fresh model, timed over shapes of batch × context length."""

    Config = Config

    def measure(
        self, model: LanguageModel, recipe: TrainConfig, config: Config, progress: Progress = silent
    ) -> list[Measurement]:
        """Return a model's reading and decoding speed and state size, as tasks `batch_<n>` by context length.

        Speeds are tokens per second of all rows together, medians over windows; state_bytes is one row's state after
        its context. A shape that does not fit into memory gets `decode_out_of_memory` instead.
        """
        device = model.embedding.weight.device
        dtype = recipe_dtype(recipe, device)
        settings = config.model_dump(exclude={"shapes"}) | {"vocab_size": model.config.vocab_size, "compile": "none"}
        measurements: list[Measurement] = []
        for shape in config.shapes:
            where = {"suite": self.name, "task": f"batch_{shape.batch}", "length": shape.length}
            where["settings"] = {"batch": shape.batch} | settings
            with torch.no_grad(), torch.autocast(device.type, dtype, enabled=dtype != model.embedding.weight.dtype):
                taken = unless_out_of_memory(lambda shape=shape: time_windows(model, shape, config), device)
            if taken is None:
                progress(f"{shape.batch} × {shape.length}: out of memory")
                measurements.append(Measurement(metric="decode_out_of_memory", value=1.0, stderr=None, n=1, **where))
                continue
            reading, decoding, size = taken
            read, read_error = median_stderr([shape.batch * shape.length / t for t in reading])
            new, new_error = median_stderr([shape.batch * config.new_tokens / t for t in decoding])
            progress(f"{shape.batch} × {shape.length}: {read:,.0f} tokens/s read, {new:,.0f} decoded")
            measurements += [
                Measurement(
                    metric="prefill_tokens_per_second", value=read, stderr=read_error, n=config.windows, **where
                ),
                Measurement(metric="decode_tokens_per_second", value=new, stderr=new_error, n=config.windows, **where),
                Measurement(metric="state_bytes", value=float(size), stderr=None, n=1, **where),
            ]
        return measurements


def time_windows(model: LanguageModel, shape: Shape, config: Config) -> tuple[list[float], list[float], int]:
    """Return the seconds of reading and of decoding in each window, and the bytes of one row's state."""
    device = model.embedding.weight.device
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(model.config.vocab_size, (shape.batch, shape.length), generator=generator).to(device)
    reading: list[float] = []
    decoding: list[float] = []
    size = 0
    hidden: Tensor
    state: ModelState

    def read() -> None:
        nonlocal hidden, state
        hidden, state = prefill(model, tokens)

    def step() -> None:
        nonlocal hidden, state
        chosen = model.head(hidden).argmax(-1)
        hidden, state = model.hidden(chosen[:, None], state, None, True)
        hidden = hidden[:, 0]

    for _ in range(config.windows + 1):  # kernels are compiled and tuned in the first one
        state = []  # two states at once may not fit into memory
        reading.append(time_calls(read, 1, device))
        size = state_bytes(state) // shape.batch
        step()  # attention moves its cache to a larger buffer here, once, and not at every token
        decoding.append(time_calls(step, config.new_tokens, device))
    return reading[1:], decoding[1:], size


def prefill(model: LanguageModel, tokens: Tensor) -> tuple[Tensor, ModelState]:
    """Read tokens [B, T]; return the last hidden vector of each row, [B, D], and the state."""
    rows = max(1, tokens_at_once(model) // tokens.shape[1])
    last, states = [], []
    for part in tokens.split(rows):
        ends = torch.arange(1, len(part) + 1, device=tokens.device) * tokens.shape[1] - 1
        hidden, state = model.hidden(part, None, None, True, ends)
        last.append(hidden)
        states.append(state)
    return torch.cat(last), states[0] if len(states) == 1 else model.cat_states(states)


def state_bytes(state: ModelState) -> int:
    """Return the bytes of a state's numbers; spare room of their buffers does not count."""
    return sum(tensor.numel() * tensor.element_size() for layer in state for tensor in layer.values())
