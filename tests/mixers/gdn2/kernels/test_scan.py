"""The scan kernels alone: one pass forward and one backward, against torch and its autograd."""

import torch

from mixers.gdn2.kernels.scan import SCAN_BACKWARD, SCAN_FORWARD
from tests.mixers.gdn2.cases import DEVICE, GRADIENT, OUTPUT

CHUNKS, C, K, V = 2, 16, 16, 16
SIZES = dict(H=1, HV=1, K=K, V=V, C=C, KB=16, PRECISION="tf32x3")


def operands() -> dict[str, torch.Tensor]:
    """Two chunks of one sequence and head, with a lower triangular A and Aqk."""
    draw = torch.randn
    x = {name: 0.3 * draw(CHUNKS, 1, C, K) for name in ("q_decayed", "e_decayed", "k_decayed")}
    x |= {"total": torch.rand(CHUNKS, 1, K), "aqk": 0.3 * draw(CHUNKS, 1, C, C).tril()}
    x |= {"inverse": torch.eye(C) + 0.3 * draw(CHUNKS, 1, C, C).tril(-1)}
    return {name: t.to(DEVICE) for name, t in x.items()}


def offsets() -> dict[str, torch.Tensor]:
    return {
        "sequence_start": torch.tensor([0, CHUNKS * C], device=DEVICE),
        "sequence_chunk": torch.tensor([0, CHUNKS], device=DEVICE),
    }


def scan(x: dict[str, torch.Tensor], z: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The scan in torch: outputs of all chunks, and the last state."""
    outputs = []
    for i in range(CHUNKS):
        q, e, k, total, inverse, aqk = (
            x[name][i, 0] for name in ("q_decayed", "e_decayed", "k_decayed", "total", "inverse", "aqk")
        )
        r = inverse @ (z[i] - e @ state)
        outputs.append(q @ state + aqk @ r)
        state = total[:, None] * state + k.T @ r
    return torch.cat(outputs), state


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a.double() - b).norm() / b.norm()).item()


def test_forward_and_backward_are_the_scan_and_its_gradient() -> None:
    x = operands()
    v, w, do = torch.randn(3, 1, CHUNKS * C, 1, V, device=DEVICE)
    initial, d_final = torch.randn(2, 1, 1, K, V, device=DEVICE)
    o, r = torch.empty_like(v), torch.empty(CHUNKS, 1, C, V, device=DEVICE)
    states, final = torch.empty(CHUNKS, 1, K, V, device=DEVICE), torch.empty_like(initial)
    SCAN_FORWARD(
        lambda meta: (1,), v=v, w=w, **x, initial=initial, **offsets(), o=o, r=r, states=states, final=final,
        ACTIVATE=False, HAS_INITIAL=True, KEEP=True, **SIZES,
    )  # fmt: skip
    exact = {name: t.double() for name, t in x.items()}
    z = (w * v)[0, :, 0].double().unflatten(0, (CHUNKS, C)).requires_grad_()
    start = initial[0, 0].double().requires_grad_()
    expected, last = scan(exact, z, start)
    assert relative(o[0, :, 0], expected) < OUTPUT and relative(final[0, 0], last) < OUTPUT
    assert torch.equal(states[0, 0], initial[0, 0])

    dz, d_states, d_initial = torch.empty_like(r), torch.empty_like(states), torch.empty_like(initial)
    SCAN_BACKWARD(
        lambda meta: (1,), do=do, **x, d_final=d_final, **offsets(), dz=dz, d_states=d_states, d_initial=d_initial,
        HAS_FINAL=True, **SIZES,
    )  # fmt: skip
    outer = (do[0, :, 0].double(), d_final[0, 0].double())
    wanted_z, wanted_state = torch.autograd.grad((expected, last), (z, start), outer)
    assert relative(dz[:, 0], wanted_z) < GRADIENT and relative(d_initial[0, 0], wanted_state) < GRADIENT
    assert torch.equal(d_states[-1, 0], d_final[0, 0])


def test_blocks_of_v_are_no_wider_than_v() -> None:
    arguments = {"q_decayed": torch.empty(0, dtype=torch.bfloat16), "K": 128, "V": 16}
    for kernel in (SCAN_FORWARD, SCAN_BACKWARD):
        for capability in (80, 90):
            assert {c.kwargs["BV"] for c in kernel.candidates(arguments, capability)} == {16}
