"""Mamba-2 and Mamba-3: the scan against its recurrence and its matrix form, the layers against equations and fla."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from mixers.interface import Mixer
from mixers.mamba2 import GatedRMSNorm, Mamba2, Mamba2Config
from mixers.mamba3 import Mamba3, Mamba3Config, advance_angles
from mixers.parts.ssd import ssd_chunked, ssd_recurrent
from mixers.registry import build_mixer

LAYERS = ("mamba2", "mamba3_siso", "mamba3_mimo")
# groups, rank, trapezoidal: Mamba-2 with one and two groups, Mamba-3 SISO, Mamba-3 MIMO.
SCANS = ((1, 1, False), (2, 1, False), (4, 1, True), (4, 3, True))


def scan_inputs(groups, rank, trapezoidal, steps, dtype=torch.float64, seed=0, width=6, size=8, heads=4, batch=2):
    """Arguments of the scans, all positional, initial state included."""
    torch.manual_seed(seed)
    x = torch.randn(batch, steps, heads, rank, width, dtype=dtype)
    log_decay = -torch.rand(batch, steps, heads, dtype=dtype) * 2
    now, before = torch.rand(2, batch, steps, heads, dtype=dtype)
    B, C = torch.randn(2, batch, steps, groups, rank, size, dtype=dtype)
    state = torch.randn(batch, heads, width, size, dtype=dtype)
    previous = (torch.randn_like(x[:, 0]), torch.randn_like(B[:, 0]))
    return [x, log_decay, now, B, C, state, *((before, previous) if trapezoidal else (None, None))]


def error(actual, expected):
    """Largest deviation over the largest magnitude."""
    return ((actual.double() - expected.double()).abs().max() / expected.double().abs().max()).item()


def layer(name, d_model=12, randomised=True, **options) -> Mixer:
    """A small fp64 layer whose weights, those that start as constants too, are random."""
    torch.manual_seed(1)
    mixer = build_mixer(name, d_model, {"d_inner": 16, "d_state": 8, "head_dim": 4, "chunk_size": 4} | options)
    if randomised:
        with torch.no_grad():
            for parameter in mixer.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return mixer.double()


def tokens(*shape, seed=2):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("scan", SCANS)
@pytest.mark.parametrize("steps", [1, 7, 16, 37])
def test_chunks_give_what_the_recurrence_gives(scan, steps):
    args = scan_inputs(*scan, steps)
    expected = ssd_recurrent(*args)
    for actual, wanted in zip(ssd_chunked(*args, chunk_size=8), expected, strict=True):
        assert error(actual, wanted) < 1e-9  # the project's bound for fp64; rounding alone is about 1e-15
    single = [t.float() if isinstance(t, torch.Tensor) else t and tuple(p.float() for p in t) for t in args]
    for actual, wanted in zip(ssd_chunked(*single, chunk_size=8), expected, strict=True):
        assert actual.dtype == torch.float32
        assert error(actual, wanted) < 1e-4  # the project's bound for fp32


@pytest.mark.parametrize("scan", SCANS)
def test_extreme_decays_are_exact_with_finite_gradients(scan):
    args = scan_inputs(*scan, 37)
    choices = torch.tensor([0.0, 0.0, -1e-3, -1.0, -50.0, -1e4], dtype=torch.float64)
    args[1] = choices[torch.randint(len(choices), args[1].shape)]
    expected, expected_state = ssd_recurrent(*args)
    y, state = ssd_chunked(*args, chunk_size=16)
    assert error(y, expected) < 1e-9 and error(state, expected_state) < 1e-9
    leaves = [t.float().requires_grad_() for t in args[:6]]
    rest = [args[6] if args[6] is None else args[6].float(), args[7] and tuple(t.float() for t in args[7])]
    y, state = ssd_chunked(*leaves, *rest, chunk_size=16)
    assert error(y, expected) < 1e-4 and error(state, expected_state) < 1e-4
    gradients = torch.autograd.grad(y.sum() + state.sum(), leaves)
    doubles = [t.double().detach().requires_grad_() for t in leaves]
    reference = ssd_recurrent(*doubles, *args[6:])
    wanted = torch.autograd.grad(reference[0].sum() + reference[1].sum(), doubles)
    for gradient, want in zip(gradients, wanted, strict=True):
        assert gradient.isfinite().all()
        assert error(gradient, want) < 1e-4  # fp32 rounding over sums of 37 tokens


@pytest.mark.parametrize("groups", [1, 2])
def test_the_scan_is_one_product_with_a_masked_decay_matrix(groups):
    """State space duality by itself: y = (exp(segment sums) ∘ C Bᵀ) (dt x), every entry from the definition."""
    x, g, dt, B, C, *_ = scan_inputs(groups, 1, False, 21)
    steps, heads = g.shape[1:]
    M = torch.zeros(x.shape[0], heads, steps, steps, dtype=torch.float64)
    for h in range(heads):
        group = h * groups // heads
        for t in range(steps):
            for s in range(t + 1):
                product = (C[:, t, group, 0] * B[:, s, group, 0]).sum(-1)
                M[:, h, t, s] = g[:, s + 1 : t + 1, h].sum(-1).exp() * product * dt[:, s, h]
    y, _ = ssd_chunked(x, g, dt, B, C, chunk_size=8)
    assert error(y.squeeze(3), torch.einsum("bhts,bshp->bthp", M, x.squeeze(3))) < 1e-12


@pytest.mark.parametrize("scan", SCANS)
def test_gradients_of_the_chunked_scan_pass_gradcheck(scan):
    args = scan_inputs(*scan, 5, width=2, size=2, batch=1)
    leaves = [t.requires_grad_() for t in args[:6]]
    if scan[2]:
        leaves += [args[6].requires_grad_(), *(t.requires_grad_() for t in args[7])]

    def chunked(*t):
        return ssd_chunked(*t[:6], *((t[6], t[7:]) if scan[2] else ()), chunk_size=2)

    assert torch.autograd.gradcheck(chunked, leaves)


@pytest.mark.parametrize("name", LAYERS)
def test_whole_pieces_and_single_tokens_agree(name):
    mixer, x = layer(name), tokens(2, 23, 12)
    whole, last = mixer(x, return_state=True)
    for sizes in ([1] * 23, [2, 5, 1, 15], [16, 7]):
        state, outputs = None, []
        for piece in x.split(sizes, 1):
            kept = None if state is None else {key: value.clone() for key, value in state.items()}
            y, new = mixer(piece, state, return_state=True)
            if state is not None:  # the caller's state is left as it was
                assert all(torch.equal(state[key], kept[key]) for key in kept)
            state = new
            outputs.append(y)
        assert error(torch.cat(outputs, 1), whole) < 1e-9
        for key in last:
            turn = 2 * math.pi if key == "angle" else math.inf  # angles are equal up to whole turns
            gap = (state[key] - last[key]).abs()
            assert torch.minimum(gap, (turn - gap).abs()).max() < 1e-9


@pytest.mark.parametrize("name", LAYERS)
def test_packed_sequences_never_see_each_other(name):
    mixer, x = layer(name), tokens(1, 19, 12)
    _, state = mixer(tokens(4, 3, 12, seed=5), return_state=True)
    offsets = [0, 5, 6, 11, 19]
    packed, states = mixer(x, state, torch.tensor(offsets), return_state=True)
    for i, (a, b) in enumerate(zip(offsets, offsets[1:], strict=False)):
        own = {key: value[i : i + 1] for key, value in state.items()}
        y, last = mixer(x[:, a:b], own, return_state=True)
        assert error(packed[:, a:b], y) < 1e-9
        assert all(error(states[key][i : i + 1], last[key]) < 1e-9 for key in last)


@pytest.mark.parametrize("name", LAYERS)
def test_the_future_changes_nothing_before_it(name):
    mixer, x = layer(name), tokens(2, 13, 12)
    y, _ = mixer(x)
    for cut in (1, 4, 6, 12):
        changed = x.clone()
        changed[:, cut:] = tokens(2, 13 - cut, 12, seed=cut)
        z, _ = mixer(changed)
        assert torch.equal(z[:, :cut], y[:, :cut])
        assert (z[:, cut] - y[:, cut]).abs().max() > 1e-6


def test_mamba2_computes_what_fla_computes_with_the_same_weights():
    from fla.layers.mamba2 import Mamba2 as Theirs

    ours = layer("mamba2", d_model=8).float()
    theirs = Theirs(num_heads=4, head_dim=4, hidden_size=8, state_size=8, chunk_size=8)
    theirs.load_state_dict(ours.state_dict())
    weight = theirs.norm.weight

    class Norm(torch.nn.Module):  # fla's gated norm and its SiLU are Triton kernels, which need a GPU
        def forward(self, y, z):
            return F.rms_norm(y * F.silu(z), y.shape[-1:], weight, 1e-5)

    theirs.norm, theirs.act = Norm(), F.silu
    x = tokens(2, 29, 8).float()
    expected, *_ = theirs.torch_forward(x)
    assert error(ours(x)[0], expected) < 1e-5  # both in fp32, sums in different orders


def test_mamba2s_gate_comes_before_a_norm_over_each_group():
    norm = GatedRMSNorm(12, groups=3).double()
    torch.nn.init.normal_(norm.weight)
    y, z = tokens(2, 5, 12), tokens(2, 5, 12, seed=3)
    parts = (y * z * torch.sigmoid(z)).chunk(3, -1)
    normed = torch.cat([part / (part.square().sum(-1, keepdim=True) / 4 + 1e-5).sqrt() for part in parts], -1)
    assert error(norm(y, z), normed * norm.weight) < 1e-14


def rotation(vector, angles, pairwise):
    """The rotated vector, pair by pair, from the definition."""
    turned = vector.clone()
    half = vector.shape[0] // 2
    for i, angle in enumerate(angles.tolist()):
        a, b = (2 * i, 2 * i + 1) if pairwise else (i, half + i)
        turned[a] = vector[a] * math.cos(angle) - vector[b] * math.sin(angle)
        turned[b] = vector[a] * math.sin(angle) + vector[b] * math.cos(angle)
    return turned


def mamba3_by_hand(m: Mamba3, u):
    """One sequence u [T, D] through a layer m, token by token, head by head, from the equations."""
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
def test_mamba3_follows_its_equations(name, rope_fraction):
    mixer = layer(name, rope_fraction=rope_fraction)
    mixer.dt_bias += 3  # steps of about 1 turn the state by up to half a circle a token
    x = tokens(2, 11, 12)
    y, state = mixer(x, return_state=True)
    for i in range(2):
        expected, S, theta = mamba3_by_hand(mixer, x[i])
        assert error(y[i], expected) < 1e-10
        assert error(state["ssm"][i], S) < 1e-10
        assert error(state["angle"][i], theta.remainder(2 * math.pi)) < 1e-10


def test_a_negligible_rate_is_held_at_the_floor():
    """dd_A very negative would mean no forgetting at all; the rate stays at 1e-4."""
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
    # Each step's product is rounded to fp32, about 1e-7 at random over 20000 tokens; a sum in fp32 is off by 1e-3.
    assert torch.minimum(gap, 2 * math.pi - gap).max() < 1e-4


UPSTREAM = {
    # mamba_ssm.modules.mamba2.Mamba2(d_model=32, d_state=8, headdim=16, ngroups=2)
    "mamba2": {
        "dt_bias": [4],
        "A_log": [4],
        "D": [4],
        "in_proj.weight": [164, 32],
        "conv1d.weight": [96, 1, 4],
        "conv1d.bias": [96],
        "norm.weight": [64],
        "out_proj.weight": [32, 64],
    },
    # mamba_ssm.modules.mamba3.Mamba3(d_model=32, d_state=8, headdim=16)
    "mamba3_siso": {
        "dt_bias": [4],
        "B_bias": [4, 1, 8],
        "C_bias": [4, 1, 8],
        "D": [4],
        "in_proj.weight": [158, 32],
        "B_norm.weight": [8],
        "C_norm.weight": [8],
        "out_proj.weight": [32, 64],
    },
    # mamba_ssm.modules.mamba3.Mamba3(d_model=32, d_state=8, headdim=16, is_mimo=True, mimo_rank=4)
    "mamba3_mimo": {
        "dt_bias": [4],
        "B_bias": [4, 4, 8],
        "C_bias": [4, 4, 8],
        "mimo_x": [4, 4, 16],
        "mimo_z": [4, 4, 16],
        "mimo_o": [4, 4, 16],
        "D": [4],
        "in_proj.weight": [206, 32],
        "B_norm.weight": [8],
        "C_norm.weight": [8],
        "out_proj.weight": [32, 64],
    },
}


@pytest.mark.parametrize("name", LAYERS)
def test_weights_have_upstreams_names_and_shapes(name):
    options = {"d_state": 8, "head_dim": 16} | ({"n_groups": 2} if name == "mamba2" else {})
    mixer = build_mixer(name, 32, options)
    assert {key: list(value.shape) for key, value in mixer.state_dict().items()} == UPSTREAM[name]


def test_mamba3_names_and_shapes_are_flas():
    from fla.layers.mamba3 import Mamba3 as Theirs

    for name, mimo in (("mamba3_siso", False), ("mamba3_mimo", True)):
        theirs = Theirs(hidden_size=32, state_size=8, head_dim=16, is_mimo=mimo)
        build_mixer(name, 32, {"d_state": 8, "head_dim": 16}).load_state_dict(theirs.state_dict())


def test_initial_rates_and_time_steps_are_upstreams():
    torch.manual_seed(0)
    mamba2 = Mamba2(64, Mamba2Config(d_inner=4096, head_dim=2, d_state=2))
    rates = mamba2.A_log.exp()
    assert rates.min() >= 1 and rates.max() <= 16 and abs(rates.mean() - 8.5) < 0.5
    mamba3 = Mamba3(64, Mamba3Config(mimo=True, d_inner=4096, head_dim=2, d_state=4))
    for mixer in (mamba2, mamba3):
        log_dt = F.softplus(mixer.dt_bias.double()).log()
        assert log_dt.min() > math.log(0.00099) and log_dt.max() < math.log(0.101)
        assert abs(log_dt.mean() - math.log(0.01)) < 0.1  # the middle of a log-uniform draw, 2048 of them
        assert (mixer.D == 1).all()
    assert (mamba3.B_bias == 1).all() and (mamba3.C_bias == 1).all()
    assert (mamba3.mimo_x == 0.25).all() and (mamba3.mimo_z == 1).all() and (mamba3.mimo_o == 0.25).all()


@pytest.mark.parametrize("name", LAYERS)
def test_states_accumulate_in_fp32_in_a_bf16_layer(name):
    x = tokens(2, 30, 12).bfloat16()
    reference, state = layer(name, randomised=False)(x.double(), return_state=True)
    y, low = layer(name, randomised=False).bfloat16()(x, return_state=True)
    assert y.dtype == torch.bfloat16 and low["ssm"].dtype == torch.float32
    assert error(y, reference) < 0.05  # bf16 keeps 8 bits: weights and activations are each off by up to 0.4%
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, low = layer(name, randomised=False).float()(x.float(), return_state=True)
    assert low["ssm"].dtype == torch.float32
    assert error(y, reference) < 0.05 and error(low["ssm"], state["ssm"]) < 0.05


@pytest.mark.parametrize("scan", SCANS)
def test_autocast_does_not_reach_the_scan(scan):
    args = [t.float() if isinstance(t, torch.Tensor) else t for t in scan_inputs(*scan, 20)]
    for form in (ssd_recurrent, ssd_chunked):
        expected = form(*args)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert all(torch.equal(a, b) for a, b in zip(form(*args), expected, strict=True))


@pytest.mark.parametrize("name", LAYERS)
def test_cost_counts_the_layers_own_numbers(name):
    mixer = layer(name)
    _, state = mixer(tokens(1, 3, 12), return_state=True)
    cost = mixer.cost(128)
    assert cost.parameters == sum(p.numel() for p in mixer.parameters())
    assert cost.state_floats == state["ssm"].numel() == 16 * 8
    with torch.device("meta"):
        assert build_mixer(name, 12, {"d_inner": 16, "d_state": 8, "head_dim": 4}).cost(128) == cost


def test_flops_are_those_of_the_recurrent_form():
    """Worked by hand at width 12, inner width 16, state 8, four heads."""
    assert layer("mamba2").cost(9).flops_per_token == 2 * (12 * (16 + 32 + 4) + 16 * 12 + 32 * 4) + 5 * 128
    assert layer("mamba3_siso").cost(9).flops_per_token == 2 * (12 * (32 + 16 + 12 + 2) + 16 * 12) + 7 * 128
    assert layer("mamba3_mimo").cost(9).flops_per_token == 2 * (12 * (32 + 64 + 12 + 2) + 16 * 12) + 25 * 128


def test_the_published_runs_state_is_262144_numbers():
    options = {"d_inner": 4096, "d_state": 64, "head_dim": 64}
    with torch.device("meta"):
        assert {build_mixer(name, 2304, options).cost(4096).state_floats for name in LAYERS} == {262144}


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("mamba2", {"head_dim": 7}, "mamba2.head_dim: 7 does not divide d_inner=24"),
        ("mamba2", {"head_dim": 8, "n_groups": 2}, "mamba2.n_groups: 2 does not divide the 3 heads"),
        ("mamba2", {"head_dim": 8, "chunk_size": 24}, "mamba2.chunk_size: 24 is not a power of two"),
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
