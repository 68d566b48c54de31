"""Checks of a mixer's behaviour: shapes, causality, states, packing, gradients, precision and kernels."""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.gradcheck import GradcheckError

from mixers.backends import TORCH, reasons
from mixers.conformance.trial import (
    ACCUMULATORS,
    BF16,
    EXACT,
    Outcome,
    Trial,
    Unserved,
    Violation,
    autocast,
    bounded,
    demand,
    floating,
    relative_error,
    state_after,
    state_bytes,
    state_kinds,
)
from mixers.interface import Mixer, index_state

# A gradient passes the roundings of bf16 forwards and backwards. Gradients of one number per head, such as decays, are
# sums over tokens that cancel. A wrong gradient is off by its full size.
BF16_GRADIENT = 32 * 2**-8
PIECE = 4096  # tokens of a long input fed at a time
CPU_FLOPS = 1e11  # limit for one long input on a CPU: some seconds
GROWTH = 0.02  # a window's cache lacks the token being computed, and the length is carried next to keys and values


def _shapes(trial: Trial) -> Outcome:
    for mixer, dtype in trial.both():
        x = trial.tokens(3, 7, dtype)
        with autocast(x):
            (y, nothing), (_, state) = mixer(x), mixer(x, return_state=True)
        demand(
            y.shape == x.shape and y.dtype == dtype,
            f"y: expected {list(x.shape)} {dtype}, got {list(y.shape)} {y.dtype}",
        )
        demand(nothing is None, "state: returned although return_state is False")
        demand(
            isinstance(state, dict) and all(isinstance(v, Tensor) for v in state.values()),
            f"state: expected a dict of tensors, got {type(state).__name__}",
        )
        for key, value in state.items():
            demand(value.shape[:1] == (3,), f"state[{key!r}]: expected the batch of 3 first, got {list(value.shape)}")
    for shape in ((1, 4, trial.d_model + 1), (4, trial.d_model)):
        try:
            mixer(torch.zeros(shape, device=trial.device))
        except ValueError:
            continue
        raise Violation(f"x: {list(shape)} is not refused with ValueError")
    return None, None, "y like x, state batch-first, other widths refused"


def _accumulators(trial: Trial) -> Outcome:
    sums, _ = state_kinds(trial)
    (_, _), (mixer, dtype) = trial.both()
    state = state_after(mixer, trial.tokens(2, 20, dtype))
    for key in sorted(sums):
        demand(
            state[key].dtype.itemsize >= 4,
            f"state[{key!r}]: {state[key].dtype} cannot accumulate many tokens; keep fp32",
        )
    return None, None, f"under bf16: {', '.join(sorted(sums)) or 'no tensor sums up the past'}"


CUTS = (1, 33, 64, 69)  # of 70 tokens: the first, the last, and both sides of chunk borders


def _causality(trial: Trial) -> Outcome:
    mixer, x = trial.mixer(), trial.tokens(2, 70)
    y, errors = mixer(x)[0], []
    for cut in CUTS:
        changed = x.clone()
        changed[:, cut:] += 1
        other = mixer(changed)[0]
        errors.append((relative_error(other[:, :cut], y[:, :cut]), f"before token {cut}, when later tokens change"))
        later = (other - y)[:, cut:].abs().amax(-1)
        demand(bool((later > 0).all()), f"tokens from {cut} on change, but their outputs do not")
    return bounded(errors, EXACT)


def _causality_of_gradients(trial: Trial) -> Outcome:
    mixer, x = trial.mixer(), trial.tokens(2, 70).requires_grad_()
    errors = []
    for cut in CUTS:
        (gradient,) = torch.autograd.grad(mixer(x)[0][:, :cut].square().sum(), x)
        errors.append((float(gradient[:, cut:].abs().max()), f"of outputs before token {cut} by later inputs"))
    # The bound is exactly 0: a masked product is 0, so nothing of the future may enter a sum.
    return bounded(errors, 0.0)


def _pieces(trial: Trial) -> Outcome:
    mixer, x = trial.mixer(), trial.tokens(2, 75)
    whole, final = mixer(x, return_state=True)
    errors = []
    for cuts, name in (([17, 18, 64], "17+1+46+11"), ([1, 3, 40], "1+2+37+35"), (range(1, 75), "token by token")):
        outputs, state = [], None
        for part in x.tensor_split(list(cuts), 1):
            y, state = mixer(part, state, return_state=True)
            outputs.append(y)
        errors.append((relative_error(torch.cat(outputs, 1), whole), f"outputs, {name}"))
        errors += [
            (relative_error(state[key], value), f"state[{key!r}], {name}")
            for key, value in final.items()
            if state[key].shape == value.shape
        ]
    return bounded(errors, EXACT)


def _left_alone(trial: Trial) -> Outcome:
    altered = []
    for mixer, dtype in trial.both():
        state = state_after(mixer, trial.tokens(2, 9, dtype))
        for steps in (1, 20):
            inputs = state | {"x": trial.tokens(2, steps, dtype)}
            before = {key: value.clone() for key, value in inputs.items()}
            state_after(mixer, inputs["x"], state)
            altered += [f"{key} in {dtype}, {steps} tokens" for key in inputs if not inputs[key].equal(before[key])]
    return len(altered), 0, altered[0] if altered else "the state and x passed in, bitwise"


PACKED = [1, 63, 65, 17, 64, 2]  # lengths on both sides of chunk borders; no sequence starts at a border of the row


def _packing(trial: Trial) -> Outcome:
    mixer, x = trial.mixer(), trial.tokens(1, sum(PACKED))
    offsets = torch.tensor([0, *PACKED], device=trial.device).cumsum(0)
    step, errors = trial.tokens(len(PACKED), 1), []
    for start in (None, state_after(mixer, trial.tokens(len(PACKED), 9))):
        y, after = mixer(x, start, cu_seqlens=offsets, return_state=True)
        following = mixer(step, after)[0]
        name = "without a state" if start is None else "after a state"
        for i, (a, b) in enumerate(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)):
            entering = None if start is None else index_state(start, [i])
            alone, state = mixer(x[:, a:b], entering, return_state=True)
            errors.append((relative_error(y[:, a:b], alone), f"sequence {i} of lengths {PACKED}, {name}"))
            errors.append(
                (relative_error(following[[i]], mixer(step[[i]], state)[0]), f"the token after sequence {i}, {name}")
            )
    return bounded(errors, EXACT)


def _batch(trial: Trial) -> Outcome:
    mixer, x = trial.mixer(), trial.tokens(3, 40)
    y, order = mixer(x)[0], [2, 0, 1]
    errors = [(relative_error(mixer(x[order])[0], y[order]), "rows in another order")]
    errors += [(relative_error(mixer(x[[i]])[0], y[[i]]), f"row {i} alone") for i in range(3)]
    return bounded(errors, EXACT)


def _padding(trial: Trial) -> Outcome:
    mixer, x = trial.mixer(), trial.tokens(2, 120)
    y, lengths = mixer(x[:, :40])[0], (41, 55, 64, 120)
    errors = [(relative_error(mixer(x[:, :n])[0][:, :40], y), f"40 tokens, {n - 40} appended") for n in lengths]
    return bounded(errors, EXACT)


def _lengths(trial: Trial) -> Outcome:
    mixer, x = trial.mixer(), trial.tokens(2, 130)
    y = mixer(x)[0]
    lengths = (1, 2, 3, 31, 33, 65)
    return bounded([(relative_error(mixer(x[:, :n])[0], y[:, :n]), f"{n} tokens against 130") for n in lengths], EXACT)


def _beams(trial: Trial) -> Outcome:
    mixer = trial.mixer()
    states = [state_after(mixer, trial.tokens(1, n)) for n in (7, 20, 1)]
    joined, step = mixer.cat_states(states), trial.tokens(3, 1)
    y, after = mixer(step, joined, return_state=True)
    alone = torch.cat([mixer(step[[i]], state)[0] for i, state in enumerate(states)])
    follow, beams = trial.tokens(3, 2), [2, 0, 1, 1]
    once = mixer(follow, after)[0]
    return bounded(
        [
            (relative_error(y, alone), "states after 7, 20 and 1 tokens joined"),
            (relative_error(mixer(follow[beams], index_state(after, beams))[0], once[beams]), "reordered and repeated"),
        ],
        EXACT,
    )


def _gradients(trial: Trial) -> Outcome:
    mixer = trial.mixer()
    state = state_after(mixer, trial.tokens(1, 3))
    learned = {name: p.detach() for name, p in mixer.named_parameters() if p.requires_grad}
    carried = floating(state)
    names = ["x", *learned, *(f"state[{key!r}]" for key in carried)]
    inputs = [t.clone().requires_grad_() for t in (trial.tokens(1, 21), *learned.values(), *carried.values())]

    def run(x: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        weights = dict(zip(learned, values[: len(learned)], strict=True))
        start = state | dict(zip(carried, values[len(learned) :], strict=True))
        y, after = torch.func.functional_call(mixer, weights, (x, start), {"return_state": True})
        return y, *floating(after).values()

    try:
        # Steps of 1e-6 in float64 leave an error of 1e-10, which is small even next to the gradient of a decay.
        torch.autograd.gradcheck(run, inputs, fast_mode=True, atol=1e-7, rtol=1e-4)
    except GradcheckError as error:
        line = str(error).strip().splitlines()[0]
        match = re.search(r"with respect to input (\d+)", line)
        detail = f"{names[int(match[1])]}: differs from finite differences" if match else line
        raise Violation(detail) from None
    return None, None, f"{len(names)} tensors against finite differences, after a state"


def _learning(trial: Trial) -> Outcome:
    mixer, x = trial.mixer(), trial.tokens(2, 21)
    y = mixer(x)[0]
    (y * torch.randn(y.shape, generator=trial.generator).to(y)).sum().backward()
    learned = [(name, p.grad) for name, p in mixer.named_parameters() if p.requires_grad]
    for name, gradient in learned:
        demand(gradient is not None, f"{name}: receives no gradient")
        demand(bool(gradient.isfinite().all()), f"{name}: its gradient is not finite")
        demand(bool(gradient.any()), f"{name}: its gradient is zero everywhere")
    return None, None, f"{len(learned)} parameters have a finite gradient that is not zero"


def _bf16(trial: Trial) -> Outcome:
    (exact, _), (mixer, dtype) = trial.both()
    x = trial.tokens(2, 65)
    with autocast(low := x.to(dtype)):
        y = mixer(low)[0]
    return relative_error(y, exact(x)[0]), BF16, "outputs under autocast against float64"


def _determinism(trial: Trial) -> Outcome:
    (_, _), (mixer, dtype) = trial.both()
    x, runs = trial.tokens(2, 65, dtype).requires_grad_(), []
    inputs = {"x": x} | {name: p for name, p in mixer.named_parameters() if p.requires_grad}
    for _ in range(2):
        with autocast(x):
            y, state = mixer(x, return_state=True)
        gradients = torch.autograd.grad(y.float().square().sum(), list(inputs.values()), allow_unused=True)
        runs.append({"y": y} | state | {f"gradient of {k}": g for k, g in zip(inputs, gradients, strict=True)})
    first, second = ({k: v for k, v in run.items() if v is not None} for run in runs)
    differing = [key for key in first if not torch.equal(first[key], second[key])]
    detail = f"{differing[0]} differs between two runs" if differing else f"{len(first)} tensors, bitwise"
    return len(differing), 0, detail


def long_input(trial: Trial) -> Outcome:
    """Feed a long input in pieces: outputs stay finite, and the state grows by no more than its declared cost."""
    mixer = trial.mixer(torch.float32, trial.backend)
    torch_form = mixer.serving(trial.device, torch.bfloat16) == TORCH.name
    piece, tokens = min(PIECE, trial.long_tokens // 2), trial.long_tokens
    floats = mixer.cost(piece).state_floats
    if trial.device.type == "cpu" and mixer.cost(tokens).state_floats > floats:
        while tokens >= 4 * piece and mixer.cost(tokens).flops_per_token * tokens > CPU_FLOPS:
            tokens //= 2
    state, first = None, 0
    for start in range(0, tokens, piece):
        # Kernels are made for 16-bit activations, and some accept nothing else.
        x = trial.tokens(1, min(piece, tokens - start), torch.float32 if torch_form else torch.bfloat16)
        with torch.no_grad(), autocast(x):
            y, state = mixer(x, state, return_state=True)
        demand(bool(y.isfinite().all()), f"outputs are not finite between tokens {start:,} and {start + piece:,}")
        first = first or state_bytes(state)
    declared, grown = mixer.cost(tokens).state_floats / floats, state_bytes(state) / max(first, 1)
    fewer = "" if tokens == trial.long_tokens else f"; {trial.long_tokens:,} would take minutes on a CPU"
    detail = f"state ×{grown:.3g} from {piece:,} to {tokens:,} tokens, declared ×{declared:.3g}{fewer}"
    return abs(grown / declared - 1), 0.0 if declared == 1 else GROWTH, detail


def backend_agrees(trial: Trial, name: str) -> Outcome:
    """Compare a backend in bf16 with the torch form in float64: outputs, states and gradients.

    Raises Unserved with the reason if the backend does not serve here.
    """
    reason = reasons(trial.backends, trial.device, torch.bfloat16, trial.config)[name]
    if reason is not None:
        raise Unserved(reason)
    x, step = trial.tokens(2, 75), trial.tokens(2, 1)
    offsets = torch.tensor([0, 9, 75], device=trial.device)
    direction = torch.randn(x.shape, generator=trial.generator).to(x)

    def run(mixer: Mixer, dtype: torch.dtype) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        inputs = x.detach().to(dtype).requires_grad_()  # a leaf in either precision
        weights = direction.to(dtype)
        with autocast(inputs):
            y = mixer(inputs)[0]
            _, middle = mixer(inputs[:, :40], return_state=True)
            late = mixer(inputs[:, 40:], middle)[0]
        (through,) = torch.autograd.grad((late * weights[:, 40:]).sum(), inputs)
        (y * weights).sum().backward()
        gradients = {"x through the state": through[:, :40], "x": inputs.grad}
        gradients |= {n: p.grad for n, p in mixer.named_parameters() if p.grad is not None}
        state = state_after(mixer, inputs.detach())
        with torch.no_grad(), autocast(inputs):
            after = mixer(step.to(dtype), state)[0]
            packed = mixer(inputs[:1], cu_seqlens=offsets)[0]
        outputs = {"outputs": y, "packed outputs": packed, "the next token": after}
        # Other tensors of the state are compared through the next token only: an angle may differ by a full turn.
        outputs |= {f"state[{key!r}]": value for key, value in state.items() if key in ACCUMULATORS}
        return outputs, {f"gradient of {k}": g for k, g in gradients.items()}

    expected = run(trial.mixer(), torch.float64)
    kernels, in_torch = (run(trial.mixer(torch.float32, form), torch.bfloat16) for form in (name, TORCH.name))
    errors = []
    for ours, other, exact, bound in zip(kernels, in_torch, expected, (BF16, BF16_GRADIENT), strict=True):
        demand(ours.keys() == exact.keys(), f"expected {sorted(exact)}, got {sorted(ours)}")
        # The gradient of a decay can cancel to almost nothing. The torch form shows how many digits bf16 leaves.
        bounds = {key: max(bound, 3 * relative_error(other[key], exact[key])) for key in exact}
        errors += [(relative_error(ours[key], exact[key]), bounds[key], key) for key in exact]
    measured, bound, worst = max(errors, key=lambda e: (e[0] != e[0], e[0] / e[1]))
    return measured, bound, f"{worst}, bf16 against torch in float64"


BEHAVIOUR: dict[str, Callable[[Trial], Outcome]] = {
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
}
"""Checks of behaviour by name, in the order in which they run."""
