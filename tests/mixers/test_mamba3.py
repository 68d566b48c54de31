"""Mamba-3: its equations token by token, rotations, the floor of its rates, and options that it refuses."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from mixers.mamba3 import Mamba3, advance_angles
from mixers.registry import build_mixer
from tests.mixers.mamba import error, layer, tokens


def rotation(vector, angles, pairwise):
    """Return the rotated vector, pair by pair, from the definition."""
    turned = vector.clone()
    half = vector.shape[0] // 2
    for i, angle in enumerate(angles.tolist()):
        a, b = (2 * i, 2 * i + 1) if pairwise else (i, half + i)
        turned[a] = vector[a] * math.cos(angle) - vector[b] * math.sin(angle)
        turned[b] = vector[a] * math.sin(angle) + vector[b] * math.cos(angle)
    return turned


def mamba3_by_hand(m: Mamba3, u):
    """Run one sequence u [T, D] through a layer m by the equations, token by token and head by head."""
    H, P, N, R, K = m.heads, m.config.head_dim, m.config.d_state, m.rank, m.angles
    mimo = m.config.mimo
    ones = torch.ones(H, R, P, dtype=u.dtype)
    psi, zeta, phi = (m.mimo_x, m.mimo_z, m.mimo_o) if mimo else (ones, ones, ones)
    S = torch.zeros(H, P, N, dtype=u.dtype)
    theta = torch.zeros(H, K, dtype=u.dtype)
    last_k, last_x = torch.zeros(H, R, N, dtype=u.dtype), torch.zeros(H, P, dtype=u.dtype)
    rows = []
    for t in range(u.shape[0]):
        p = m.in_proj.weight @ u[t]
        z, x = p[: H * P].view(H, P), p[H * P : 2 * H * P].view(H, P)
        p = p[2 * H * P :]
        B, C = p[: R * N].view(R, N), p[R * N : 2 * R * N].view(R, N)
        dd_dt, dd_A, trap, angle = p[2 * R * N :].split([H, H, H, K])
        y = torch.zeros(H, P, dtype=u.dtype)
        for h in range(H):
            dt = math.log1p(math.exp(dd_dt[h] + m.dt_bias[h]))
            A = min(-math.log1p(math.exp(dd_A[h])), -1e-4)
            lam = 1 / (1 + math.exp(-trap[h]))
            alpha, beta, gamma = math.exp(A * dt), (1 - lam) * dt * math.exp(A * dt), lam * dt
            theta[h] = theta[h] + math.pi * dt * torch.tanh(angle)
            k, q = torch.zeros(R, N, dtype=u.dtype), torch.zeros(R, N, dtype=u.dtype)
            for r in range(R):
                normed_B = B[r] / (B[r].square().mean() + 1e-5).sqrt() * m.B_norm.weight
                normed_C = C[r] / (C[r].square().mean() + 1e-5).sqrt() * m.C_norm.weight
                k[r] = rotation(normed_B + m.B_bias[h, r], theta[h], not mimo)
                q[r] = rotation(normed_C + m.C_bias[h, r], theta[h], not mimo)
            S[h] = alpha * S[h]
            for r in range(R):
                S[h] += beta * torch.outer(last_x[h] * psi[h, r], last_k[h, r])
                S[h] += gamma * torch.outer(x[h] * psi[h, r], k[r])
            for r in range(R):
                gate = z[h] * zeta[h, r]
                read = S[h] @ q[r] + m.D[h] * x[h] * psi[h, r]
                y[h] += phi[h, r] * read * gate * torch.sigmoid(gate)
            last_k[h], last_x[h] = k, x[h]
        rows.append(m.out_proj.weight @ y.flatten())
    return torch.stack(rows), S, theta


@pytest.mark.parametrize("name", ["mamba3_siso", "mamba3_mimo"])
@pytest.mark.parametrize("rope_fraction", [0.5, 1.0])
@torch.no_grad()
def test_the_layer_follows_its_equations(name, rope_fraction):
    mixer = layer(name, rope_fraction=rope_fraction)
    mixer.dt_bias += 3  # steps of about 1 turn the state by up to half a circle per token
    x = tokens(2, 11, 12)
    y, state = mixer(x, return_state=True)
    for i in range(2):
        expected, S, theta = mamba3_by_hand(mixer, x[i])
        assert error(y[i], expected) < 1e-10
        assert error(state["ssm"][i], S) < 1e-10
        assert error(state["angle"][i], theta.remainder(2 * math.pi)) < 1e-10


def test_a_negligible_rate_is_held_at_the_floor():
    """With a very negative dd_A the state would never decay; the rate stays at 1e-4."""
    mixer = layer("mamba3_siso")
    calls = []
    mixer.in_proj.register_forward_hook(lambda _, __, out: calls.append(out.split(mixer.parts, -1)))
    first = sum(mixer.parts[:5])
    with torch.no_grad():
        mixer.in_proj.weight[first : first + mixer.heads] = -100.0
    x = tokens(1, 2, 12).abs()
    _, state = mixer(x[:, :1], return_state=True)
    start = {key: torch.zeros_like(value) for key, value in state.items()} | {"ssm": torch.ones_like(state["ssm"])}
    _, decayed = mixer(x[:, :1], start, return_state=True)
    dt = F.softplus(calls[0][4][0, 0] + mixer.dt_bias)
    assert torch.allclose((decayed["ssm"] - state["ssm"])[0, :, 0, 0], (-1e-4 * dt).exp(), rtol=0, atol=1e-12)


def test_angles_of_late_tokens_keep_their_digits():
    torch.manual_seed(0)
    angle, dt = torch.randn(1, 20000, 2).abs(), torch.rand(1, 20000, 3)  # one way round, some 15000 radians
    exact = (math.pi * angle.double().tanh().unsqueeze(2) * dt.double().unsqueeze(-1)).cumsum(1)
    gap = (advance_angles(angle, dt, None).double() - exact).remainder(2 * math.pi)
    # Rounding each step's product to fp32 costs about 1e-7, at random over 20000 tokens. A sum in fp32 is off by 1e-3.
    assert torch.minimum(gap, 2 * math.pi - gap).max() < 1e-4


def test_names_and_shapes_are_flas():
    from fla.layers.mamba3 import Mamba3 as Theirs

    for name, mimo in (("mamba3_siso", False), ("mamba3_mimo", True)):
        theirs = Theirs(hidden_size=32, state_size=8, head_dim=16, is_mimo=mimo)
        build_mixer(name, 32, {"d_state": 8, "head_dim": 16}).load_state_dict(theirs.state_dict())


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("mamba3_siso", {"head_dim": 7}, "mamba3_siso.head_dim: 7 does not divide d_inner=24"),
        ("mamba3_siso", {"head_dim": 8, "rank": 4}, "mamba3_siso.rank: got 4, but SISO has no rank"),
        ("mamba3_mimo", {"head_dim": 8, "d_state": 2}, "mamba3_mimo.d_state: 2 has no pairs"),
        ("mamba3_mimo", {"head_dim": 8, "d_state": 9}, "mamba3_mimo.d_state: 9 has no pairs"),
        ("mamba3_mimo", {"head_dim": 8, "chunk_size": 6}, "mamba3_mimo.chunk_size: 6 is not a power of two"),
        ("mamba3_mimo", {"mimo": False}, "mamba3_mimo.mimo: fixed to True"),
        ("mamba3_siso", {"rope_fraction": 0.25}, "mamba3_siso.rope_fraction"),
    ],
)
def test_impossible_options_are_named(name, options, message):
    with pytest.raises(ValueError, match=message):
        build_mixer(name, 12, options)
