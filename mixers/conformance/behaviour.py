"""What every mixer must pass, as one function to call on a mixer of one's own.

    findings = conform(lambda: build_mixer("gdn2", 64, SMALL["gdn2"]))
    print(render(findings))

The yardstick is the mixer itself, in float64 on its torch form: fed whole, once, alone. Nothing is known of its inside
but the interface. Every parameter is moved by a little noise first, so that none keeps a value that hides what it does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.gradcheck import GradcheckError
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from mixers.backends import TORCH, reasons
from mixers.interface import Mixer, State, index_state

_DELTA = {"heads": 2, "head_dim": 32, "value_heads": 4, "value_dim": 16, "chunk_size": 16}
_SSM = {"d_inner": 128, "head_dim": 32, "d_state": 16}
SMALL: dict[str, dict[str, Any]] = {
    "gdn2": _DELTA,
    "gated_deltanet": _DELTA,
    "kda": _DELTA,
    "mamba2": _SSM | {"n_groups": 2, "chunk_size": 16},
    "mamba3_siso": _SSM | {"chunk_size": 16},
    "mamba3_mimo": _SSM | {"rank": 2},
    "attention": {"heads": 4, "kv_heads": 2},
}
"""Options of the built-in mixers at width 64: grouped heads, keys and values of different sizes, short chunks."""

# float64 rounds at 1e-16. Another order of the same sums costs some 1e-15, behind a chunk's inverse 1e-13; a state or a
# position that is off by one costs 1e-3, and anything that goes through fp32 1e-7.
EXACT = 1e-10
# bf16 rounds at 2^-8, and an output lies behind about ten roundings: projection, convolution, gate, norm, projection.
BF16 = 12 * 2**-8
# A gradient goes through them forwards and backwards; those of single numbers a head, such as decays, are sums over
# tokens that cancel. A wrong gradient is off by all of itself.
BF16_GRADIENT = 32 * 2**-8
# What declared and counted FLOPs may differ by: roundings of a formula, never a forgotten term.
COUNTED = 1.02
# The mean of n steps, that of the first token left out: it weighs 1/n, a fifth of this.
MEAN_STEPS, MEAN = 512, 0.01
PIECE = 4096  # tokens of a long input fed at a time
CPU_FLOPS = 1e11  # of one long input on a CPU: some seconds
GROWTH = 0.02  # a window's cache lacks the token being computed, and the length is carried beside keys and values
ACCUMULATORS = ("recurrent", "ssm")  # the names that built-in mixers give what sums up the past


@dataclass(frozen=True)
class Finding:
    """One check of one mixer.

    measured, bound: the largest relative error, ratio or count found, and what it may be; None where the check is a
    yes or no. detail: the reason of a fail or of a check skipped, else what was compared.
    """

    check: str
    status: Literal["pass", "fail", "skipped"]
    measured: float | None
    bound: float | None
    detail: str


Outcome = tuple[float | None, float | None, str]
"""measured, bound, detail: a pass where measured ≤ bound or both are None."""


class _Violation(Exception):
    """A promise broken that has no figure."""


class _Unserved(Exception):
    """Why a check cannot be made here."""


class _Trial:
    """A mixer with fixed weights in any precision, and the tokens it is tried on."""

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
            raise ValueError(f"{error}; a form in torch is what all is compared with") from None

    def mixer(self, dtype: torch.dtype = torch.float64, backend: str = TORCH.name) -> Mixer:
        mixer = self.build()
        mixer.load_state_dict(self.weights)
        mixer.backend = backend
        return mixer.to(self.device, dtype)

    def tokens(self, batch: int, steps: int, dtype: torch.dtype = torch.float64) -> Tensor:
        """Noise that bf16 holds exactly, so that all precisions are given the same. [batch, steps, D]"""
        x = torch.randn(batch, steps, self.d_model, generator=self.generator).bfloat16()
        return x.to(self.device, dtype)

    def both(self) -> Iterable[tuple[Mixer, torch.dtype]]:
        """The torch form in float64, and the chosen backend as it trains: fp32 weights, bf16 activations."""
        yield self.mixer(), torch.float64
        yield self.mixer(torch.float32, self.backend), torch.bfloat16


def conform(
    build: Callable[[], Mixer],
    *,
    device: str | torch.device = "cpu",
    backend: str = "auto",
    seed: int = 0,
    long_tokens: int = 65536,
    progress: Callable[[Finding], None] | None = None,
) -> list[Finding]:
    """Try the mixers that `build` returns, all of one configuration, on everything that the interface promises.

    backend: what computes bf16 activations; float64 is always torch. long_tokens: the length over which the state must
    not grow undeclared. progress: called with each finding as it is made. An exception within a check is a `fail`.
    Raises ValueError before the first check for a backend that does not serve here and for a mixer without a form in
    torch, and whatever `build` raises.
    """
    if long_tokens < 2:
        raise ValueError(f"long_tokens: {long_tokens} tokens cannot be fed in pieces; give at least 2")
    device, findings = torch.device(device), []
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        trial = _Trial(build, device, backend, long_tokens, generator)
        names = [b.name for b in trial.backends if b.name != TORCH.name]
        checks = CHECKS | {f"backend {name}": partial(_backend, name=name) for name in names}
        for name, check in checks.items():
            generator.manual_seed(seed)
            findings.append(_attempt(name, check, trial))
            if progress is not None:
                progress(findings[-1])
    return findings


def _attempt(name: str, check: Callable[[_Trial], Outcome], trial: _Trial) -> Finding:
    try:
        measured, bound, detail = check(trial)
    except _Unserved as reason:
        return Finding(name, "skipped", None, None, str(reason))
    except Exception as error:
        kind = "" if isinstance(error, _Violation) else f"{type(error).__name__}: "
        return Finding(name, "fail", None, None, kind + (str(error).strip().splitlines() or ["no message"])[0])
    kept = measured is None or measured <= bound  # false for nan
    return Finding(name, "pass" if kept else "fail", measured, bound, detail)


HEADER = f"{'check':24} {'status':8} {'measured':>9} {'bound':>9}  detail"


def row(finding: Finding) -> str:
    """A line under HEADER."""
    figures = " ".join(f"{'-' if f is None else f'{f:.3g}':>9}" for f in (finding.measured, finding.bound))
    return f"{finding.check:24} {finding.status:8} {figures}  {finding.detail}"


def counts(findings: list[Finding]) -> str:
    """The last line: how many passed, failed and were skipped."""
    number = {status: sum(f.status == status for f in findings) for status in ("pass", "fail", "skipped")}
    return f"{number['pass']} passed, {number['fail']} failed, {number['skipped']} skipped"


def render(findings: list[Finding]) -> str:
    """The whole table."""
    return "\n".join([HEADER, *map(row, findings), counts(findings)])


def _demand(condition: bool, message: str) -> None:
    if not condition:
        raise _Violation(message)


def _error(found: Tensor, expected: Tensor) -> float:
    """‖found - expected‖ / ‖expected‖, in float64; the numerator alone where nothing is expected."""
    found, expected = found.detach().double(), expected.detach().double()
    _demand(found.shape == expected.shape, f"shapes differ: {list(found.shape)} and {list(expected.shape)}")
    scale = expected.norm()
    return float((found - expected).norm() / torch.where(scale > 0, scale, 1.0))


def _largest(errors: Iterable[tuple[float, str]]) -> tuple[float, str]:
    """The largest error and its name; nan counts as larger than any number."""
    return max(errors, key=lambda e: (e[0] != e[0], e[0]))


def _autocast(x: Tensor) -> torch.autocast:
    return torch.autocast(x.device.type, torch.bfloat16, enabled=x.dtype == torch.bfloat16)


def _state_after(mixer: Mixer, x: Tensor, state: State | None = None) -> State:
    with torch.no_grad(), _autocast(x):
        return mixer(x, state, return_state=True)[1]


def _floating(state: State) -> State:
    return {key: value for key, value in state.items() if value.is_floating_point()}


def _kinds(trial: _Trial) -> tuple[set[str], set[str]]:
    """Keys of the state's tensors that sum up the past, and of those that grow with it; the rest are tails and windows.

    A sum still depends on the first of 64 tokens; a convolution's tail or the last token does not.
    """
    mixer, x = trial.mixer(), trial.tokens(1, 64)
    other = x.clone()
    other[:, 0] += 1
    state, changed, shorter = (_floating(_state_after(mixer, t)) for t in (x, other, x[:, :48]))
    growing = {key for key in state if state[key].shape != shorter[key].shape}
    sums = {key for key in state if key in ACCUMULATORS or not torch.equal(state[key], changed[key])}
    return sums - growing, growing


def _shapes(trial: _Trial) -> Outcome:
    for mixer, dtype in trial.both():
        x = trial.tokens(3, 7, dtype)
        with _autocast(x):
            (y, nothing), (_, state) = mixer(x), mixer(x, return_state=True)
        _demand(
            y.shape == x.shape and y.dtype == dtype,
            f"y: expected {list(x.shape)} {dtype}, got {list(y.shape)} {y.dtype}",
        )
        _demand(nothing is None, "state: one is returned that was not asked for")
        _demand(
            isinstance(state, dict) and all(isinstance(v, Tensor) for v in state.values()),
            f"state: expected a dict of tensors, got {type(state).__name__}",
        )
        for key, value in state.items():
            _demand(value.shape[:1] == (3,), f"state[{key!r}]: expected the batch of 3 first, got {list(value.shape)}")
    for shape in ((1, 4, trial.d_model + 1), (4, trial.d_model)):
        try:
            mixer(torch.zeros(shape, device=trial.device))
        except ValueError:
            continue
        raise _Violation(f"x: {list(shape)} is not refused with ValueError")
    return None, None, "y like x, state batch-first, other widths refused"


def _accumulators(trial: _Trial) -> Outcome:
    sums, _ = _kinds(trial)
    (_, _), (mixer, dtype) = trial.both()
    state = _state_after(mixer, trial.tokens(2, 20, dtype))
    for key in sorted(sums):
        _demand(state[key].dtype.itemsize >= 4, f"state[{key!r}]: {state[key].dtype} loses what many tokens add up to")
    return None, None, f"under bf16: {', '.join(sorted(sums)) or 'nothing sums up the past'}"


CUTS = (1, 33, 64, 69)  # of 70 tokens: the first, the last, and around the borders of chunks


def _causality(trial: _Trial) -> Outcome:
    mixer, x = trial.mixer(), trial.tokens(2, 70)
    y, errors = mixer(x)[0], []
    for cut in CUTS:
        changed = x.clone()
        changed[:, cut:] += 1
        other = mixer(changed)[0]
        errors.append((_error(other[:, :cut], y[:, :cut]), f"before token {cut}, when all from it on change"))
        _demand(
            bool(((other - y)[:, cut:].abs().amax(-1) > 0).all()), f"tokens from {cut} on change, their outputs do not"
        )
    return _bounded(errors, EXACT)


def _bounded(errors: Iterable[tuple[float, str]], bound: float) -> Outcome:
    measured, where = _largest(errors)
    return measured, bound, where


def _causality_of_gradients(trial: _Trial) -> Outcome:
    mixer, x = trial.mixer(), trial.tokens(2, 70).requires_grad_()
    errors = []
    for cut in CUTS:
        (gradient,) = torch.autograd.grad(mixer(x)[0][:, :cut].square().sum(), x)
        errors.append((float(gradient[:, cut:].abs().max()), f"of outputs before token {cut} by inputs from it on"))
    # A product with a masked 0 is 0: nothing of the future may be in a sum at all.
    return _bounded(errors, 0.0)


def _pieces(trial: _Trial) -> Outcome:
    mixer, x = trial.mixer(), trial.tokens(2, 75)
    whole, final = mixer(x, return_state=True)
    errors = []
    for cuts, name in (([17, 18, 64], "17+1+46+11"), ([1, 3, 40], "1+2+37+35"), (range(1, 75), "token by token")):
        outputs, state = [], None
        for part in x.tensor_split(list(cuts), 1):
            y, state = mixer(part, state, return_state=True)
            outputs.append(y)
        errors.append((_error(torch.cat(outputs, 1), whole), f"outputs, {name}"))
        errors += [
            (_error(state[key], value), f"state[{key!r}], {name}")
            for key, value in final.items()
            if state[key].shape == value.shape
        ]
    return _bounded(errors, EXACT)


def _left_alone(trial: _Trial) -> Outcome:
    altered = []
    for mixer, dtype in trial.both():
        state = _state_after(mixer, trial.tokens(2, 9, dtype))
        for steps in (1, 20):
            given = state | {"x": trial.tokens(2, steps, dtype)}
            kept = {key: value.clone() for key, value in given.items()}
            _state_after(mixer, given["x"], state)
            altered += [f"{key} in {dtype}, {steps} tokens" for key in given if not torch.equal(given[key], kept[key])]
    return len(altered), 0, altered[0] if altered else "the given state and x, bitwise"


PACKED = [1, 63, 65, 17, 64, 2]  # lengths on both sides of chunk borders, of which none is where the row's would be


def _packing(trial: _Trial) -> Outcome:
    mixer, x = trial.mixer(), trial.tokens(1, sum(PACKED))
    offsets = torch.tensor([0, *PACKED], device=trial.device).cumsum(0)
    step, errors = trial.tokens(len(PACKED), 1), []
    for start in (None, _state_after(mixer, trial.tokens(len(PACKED), 9))):
        y, after = mixer(x, start, cu_seqlens=offsets, return_state=True)
        following = mixer(step, after)[0]
        name = "without a state" if start is None else "behind a state"
        for i, (a, b) in enumerate(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)):
            own = None if start is None else index_state(start, [i])
            alone, state = mixer(x[:, a:b], own, return_state=True)
            errors.append((_error(y[:, a:b], alone), f"sequence {i} of lengths {PACKED}, {name}"))
            errors.append(
                (_error(following[[i]], mixer(step[[i]], state)[0]), f"the token behind sequence {i}, {name}")
            )
    return _bounded(errors, EXACT)


def _batch(trial: _Trial) -> Outcome:
    mixer, x = trial.mixer(), trial.tokens(3, 40)
    y, order = mixer(x)[0], [2, 0, 1]
    errors = [(_error(mixer(x[order])[0], y[order]), "rows in another order")]
    errors += [(_error(mixer(x[[i]])[0], y[[i]]), f"row {i} alone") for i in range(3)]
    return _bounded(errors, EXACT)


def _padding(trial: _Trial) -> Outcome:
    mixer, x = trial.mixer(), trial.tokens(2, 120)
    y = mixer(x[:, :40])[0]
    errors = [(_error(mixer(x[:, :n])[0][:, :40], y), f"40 tokens, {n - 40} appended") for n in (41, 55, 64, 120)]
    return _bounded(errors, EXACT)


def _lengths(trial: _Trial) -> Outcome:
    mixer, x = trial.mixer(), trial.tokens(2, 130)
    y = mixer(x)[0]
    lengths = (1, 2, 3, 31, 33, 65)
    return _bounded([(_error(mixer(x[:, :n])[0], y[:, :n]), f"{n} tokens beside 130") for n in lengths], EXACT)


def _beams(trial: _Trial) -> Outcome:
    mixer = trial.mixer()
    states = [_state_after(mixer, trial.tokens(1, n)) for n in (7, 20, 1)]
    joined, step = mixer.cat_states(states), trial.tokens(3, 1)
    y, after = mixer(step, joined, return_state=True)
    alone = torch.cat([mixer(step[[i]], state)[0] for i, state in enumerate(states)])
    follow, beams = trial.tokens(3, 2), [2, 0, 1, 1]
    once = mixer(follow, after)[0]
    return _bounded(
        [
            (_error(y, alone), "states after 7, 20 and 1 tokens joined"),
            (_error(mixer(follow[beams], index_state(after, beams))[0], once[beams]), "reordered and repeated"),
        ],
        EXACT,
    )


def _gradients(trial: _Trial) -> Outcome:
    mixer = trial.mixer()
    state = _state_after(mixer, trial.tokens(1, 3))
    learned = {name: p.detach() for name, p in mixer.named_parameters() if p.requires_grad}
    carried = _floating(state)
    names = ["x", *learned, *(f"state[{key!r}]" for key in carried)]
    inputs = [t.clone().requires_grad_() for t in (trial.tokens(1, 21), *learned.values(), *carried.values())]

    def run(x: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        weights = dict(zip(learned, values[: len(learned)], strict=True))
        start = state | dict(zip(carried, values[len(learned) :], strict=True))
        y, after = torch.func.functional_call(mixer, weights, (x, start), {"return_state": True})
        return y, *_floating(after).values()

    try:
        # Steps of 1e-6 in float64 leave an error of 1e-10; a gradient as small as a decay's is still compared.
        torch.autograd.gradcheck(run, inputs, fast_mode=True, atol=1e-7, rtol=1e-4)
    except GradcheckError as error:
        line = str(error).strip().splitlines()[0]
        found = re.search(r"with respect to input (\d+)", line)
        raise _Violation(f"{names[int(found[1])]}: no gradient like finite differences" if found else line) from None
    return None, None, f"{len(names)} tensors against finite differences, behind a state"


def _learning(trial: _Trial) -> Outcome:
    mixer, x = trial.mixer(), trial.tokens(2, 21)
    y = mixer(x)[0]
    (y * torch.randn(y.shape, generator=trial.generator).to(y)).sum().backward()
    learned = [(name, p.grad) for name, p in mixer.named_parameters() if p.requires_grad]
    for name, gradient in learned:
        _demand(gradient is not None, f"{name}: receives no gradient")
        _demand(bool(gradient.isfinite().all()), f"{name}: its gradient is not finite")
        _demand(bool(gradient.any()), f"{name}: its gradient is zero everywhere")
    return None, None, f"{len(learned)} parameters have a finite gradient that is not zero"


def _bf16(trial: _Trial) -> Outcome:
    (exact, _), (mixer, dtype) = trial.both()
    x = trial.tokens(2, 65)
    with _autocast(low := x.to(dtype)):
        y = mixer(low)[0]
    return _error(y, exact(x)[0]), BF16, "outputs under autocast, of float64"


def _determinism(trial: _Trial) -> Outcome:
    (_, _), (mixer, dtype) = trial.both()
    x, runs = trial.tokens(2, 65, dtype).requires_grad_(), []
    inputs = {"x": x} | {name: p for name, p in mixer.named_parameters() if p.requires_grad}
    for _ in range(2):
        with _autocast(x):
            y, state = mixer(x, return_state=True)
        gradients = torch.autograd.grad(y.float().square().sum(), list(inputs.values()), allow_unused=True)
        runs.append({"y": y} | state | {f"gradient of {k}": g for k, g in zip(inputs, gradients, strict=True)})
    first, second = ({k: v for k, v in run.items() if v is not None} for run in runs)
    differing = [key for key in first if not torch.equal(first[key], second[key])]
    return len(differing), 0, f"{differing[0]}, twice the same input" if differing else f"{len(first)} tensors, bitwise"


COST_TOKENS = 256


def _cost_parameters(trial: _Trial) -> Outcome:
    mixer = trial.mixer()
    declared, real = mixer.cost(COST_TOKENS).parameters, sum(p.numel() for p in mixer.parameters())
    return abs(declared - real), 0, f"declared {declared:,}, there are {real:,}"


def _cost_state(trial: _Trial) -> Outcome:
    sums, growing = _kinds(trial)
    mixer = trial.mixer()
    declared = mixer.cost(COST_TOKENS).state_floats
    state = _floating(_state_after(mixer, trial.tokens(1, COST_TOKENS)))
    total = sum(v.numel() for v in state.values())
    # Tails need not be declared, nor what is carried beside the largest sum as long as it is less: angles, and the last
    # token's key turned by them.
    summed, cached = ([state[key].numel() for key in keys] for keys in (sums, growing))
    least = max([0.5 * sum(summed), *summed]) + sum(cached) or 0.5 * total
    # A window may count the token being computed, which its cache lacks: one more entry along the tokens.
    most = total + sum(v.numel() // v.shape[1] for key, v in state.items() if key not in sums and v.dim() > 2)
    off = max(declared / most, least / declared) if declared > 0 else float("inf")
    return off, 1.0, f"declared {declared:,}, carried {total:,} of which {least:,.0f} must be declared"


class _Elementwise(TorchDispatchMode):
    """Counts the numbers that elementwise operations give out."""

    floats = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if torch.Tag.pointwise in func.tags:
            self.floats += out.numel()
        return out


def _counted(trial: _Trial) -> tuple[float, int, int]:
    """FLOPs declared for a token behind COST_TOKENS others; counted in its products; and one for each number that an
    elementwise operation gives."""
    mixer, step = trial.mixer(), trial.tokens(1, 1)
    state = _state_after(mixer, trial.tokens(1, COST_TOKENS))
    products, elementwise = FlopCounterMode(display=False), _Elementwise()
    for mode in (products, elementwise):
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), mode:  # a CPU's fused attention goes uncounted
            mixer(step, state, return_state=True)
    return mixer.cost(COST_TOKENS).decode_flops, products.get_total_flops(), elementwise.floats


def _cost_products(trial: _Trial) -> Outcome:
    declared, products, _ = _counted(trial)
    _demand(declared > 0, f"decode_flops: {declared} cannot be")
    return products / declared, COUNTED, f"one step: {products:,} FLOPs of products, declared {declared:,.0f}"


def _cost_flops(trial: _Trial) -> Outcome:
    declared, products, elementwise = _counted(trial)
    ratio = declared / max(1, products + elementwise)
    return ratio, COUNTED, f"one step: declared {declared:,.0f}, with elementwise {products + elementwise:,} counted"


def _cost_mean(trial: _Trial) -> Outcome:
    mixer = trial.mixer()
    declared = mixer.cost(MEAN_STEPS).flops_per_token
    mean = sum(mixer.cost(i).decode_flops for i in range(1, MEAN_STEPS)) / (MEAN_STEPS - 1)  # 0 tokens need no cost
    return abs(declared / mean - 1), MEAN, f"flops_per_token {declared:,.0f}, mean of {MEAN_STEPS} steps {mean:,.0f}"


def _bytes(state: State) -> int:
    return sum(v.numel() * v.element_size() for v in state.values())


def _cost_bytes(trial: _Trial) -> Outcome:
    mixer, x = trial.mixer(torch.float32), trial.tokens(1, COST_TOKENS, torch.bfloat16)
    declared, read = mixer.cost(COST_TOKENS).decode_bytes, _bytes(_floating(_state_after(mixer, x)))
    return read / max(declared, 1), 1.0, f"a step reads at least {read:,} bytes of state, declared {declared:,}"


def _long(trial: _Trial) -> Outcome:
    mixer = trial.mixer(torch.float32, trial.backend)
    torch_form = mixer.serving(trial.device, torch.bfloat16) == TORCH.name
    piece, tokens = min(PIECE, trial.long_tokens // 2), trial.long_tokens
    floats = mixer.cost(piece).state_floats
    if trial.device.type == "cpu" and mixer.cost(tokens).state_floats > floats:
        while tokens >= 4 * piece and mixer.cost(tokens).flops_per_token * tokens > CPU_FLOPS:
            tokens //= 2
    state, first = None, 0
    for start in range(0, tokens, piece):
        # Kernels are for 16-bit activations, and some take no others.
        x = trial.tokens(1, min(piece, tokens - start), torch.float32 if torch_form else torch.bfloat16)
        with torch.no_grad(), _autocast(x):
            y, state = mixer(x, state, return_state=True)
        _demand(bool(y.isfinite().all()), f"outputs are not finite between tokens {start:,} and {start + piece:,}")
        first = first or _bytes(state)
    declared, grown = mixer.cost(tokens).state_floats / floats, _bytes(state) / max(first, 1)
    fewer = "" if tokens == trial.long_tokens else f"; {trial.long_tokens:,} would take minutes on a CPU"
    detail = f"state ×{grown:.3g} from {piece:,} to {tokens:,} tokens, declared ×{declared:.3g}{fewer}"
    return abs(grown / declared - 1), 0.0 if declared == 1 else GROWTH, detail


def _backend(trial: _Trial, name: str) -> Outcome:
    reason = reasons(trial.backends, trial.device, torch.bfloat16, trial.config)[name]
    if reason is not None:
        raise _Unserved(reason)
    x, step = trial.tokens(2, 75), trial.tokens(2, 1)
    offsets = torch.tensor([0, 9, 75], device=trial.device)
    direction = torch.randn(x.shape, generator=trial.generator).to(x)

    def run(mixer: Mixer, dtype: torch.dtype) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        given = x.detach().to(dtype).requires_grad_()  # a leaf in either precision
        towards = direction.to(dtype)
        with _autocast(given):
            y = mixer(given)[0]
            _, middle = mixer(given[:, :40], return_state=True)
            late = mixer(given[:, 40:], middle)[0]
        (through,) = torch.autograd.grad((late * towards[:, 40:]).sum(), given)
        (y * towards).sum().backward()
        gradients = {"x through the state": through[:, :40], "x": given.grad}
        gradients |= {n: p.grad for n, p in mixer.named_parameters() if p.grad is not None}
        state = _state_after(mixer, given.detach())
        with torch.no_grad(), _autocast(given):
            after = mixer(step.to(dtype), state)[0]
            packed = mixer(given[:1], cu_seqlens=offsets)[0]
        found = {"outputs": y, "packed outputs": packed, "the next token": after}
        # Of other tensors of the state only what follows from them is compared: an angle may differ by a turn.
        found |= {f"state[{key!r}]": value for key, value in state.items() if key in ACCUMULATORS}
        return found, {f"gradient of {k}": g for k, g in gradients.items()}

    expected = run(trial.mixer(), torch.float64)
    found, usual = (run(trial.mixer(torch.float32, form), torch.bfloat16) for form in (name, TORCH.name))
    errors = []
    for ours, other, exact, bound in zip(found, usual, expected, (BF16, BF16_GRADIENT), strict=True):
        _demand(ours.keys() == exact.keys(), f"expected {sorted(exact)}, got {sorted(ours)}")
        # The gradient of a decay can cancel to nothing; how much of it bf16 leaves, the torch form shows.
        bounds = {key: max(bound, 3 * _error(other[key], exact[key])) for key in exact}
        errors += [(_error(ours[key], exact[key]), bounds[key], key) for key in exact]
    measured, bound, worst = max(errors, key=lambda e: (e[0] != e[0], e[0] / e[1]))
    return measured, bound, f"{worst}, bf16 against torch in float64"


CHECKS: dict[str, Callable[[_Trial], Outcome]] = {
    "shapes and dtypes": _shapes,
    "accumulators in fp32": _accumulators,
    "causality": _causality,
    "causality of gradients": _causality_of_gradients,
    "pieces": _pieces,
    "inputs left alone": _left_alone,
    "packing": _packing,
    "batch": _batch,
    "padding": _padding,
    "lengths": _lengths,
    "states of beams": _beams,
    "gradients": _gradients,
    "every parameter learns": _learning,
    "bf16": _bf16,
    "determinism": _determinism,
    "cost: parameters": _cost_parameters,
    "cost: state": _cost_state,
    "cost: products": _cost_products,
    "cost: FLOPs": _cost_flops,
    "cost: mean": _cost_mean,
    "cost: bytes": _cost_bytes,
    "long input": _long,
}
