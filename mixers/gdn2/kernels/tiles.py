"""Device functions that several kernels share: decays inside a chunk, and the tiles that hold it.

Decays. The decay between tokens s < r of a chunk is Π_{s<i≤r} α_i, α = exp(g). Inside blocks of 8 tokens the pairs are
computed one by one, and the product grows by one factor per step. From there, blocks of m = 8, 16, 32 tokens are
doubled: in a pair of neighbouring blocks, the decay from s on the left to r on the right is the product after s in the
left block times the product up to r in the right block. One exponential per token and channel yields all the factors,
and each is a product of numbers in [0, 1]. Nothing is divided or subtracted, so nothing overflows, and no digits are
lost after a token that forgets everything.

Tiles. Blocks of 8 are held as eight tiles [C/8, BK]. The i-th tile has row i of every block, so each thread has all the
data that pairs within its block need. Larger blocks are matrix products of tiles [C, BK]. `stacked` and `unstacked`
turn one form into the other; where registers are short, data passes through global memory instead, within one program
and therefore through the cache.
"""

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """Return acc + a b. Operands are widened under Triton's interpreter, which would multiply the bits of bf16."""
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def exp(x):
    """Return exp x to two units in the last place, on a GPU without results below 1.2e-38, which are 0.

    That is one multiplication and one special function. tl.exp has the same error, and takes five more instructions for
    results that small.
    """
    if INTERPRETED:
        return tl.exp(x)
    log2_e: tl.constexpr = 1.4426950408889634
    return tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x * log2_e], tl.float32, True, 1)


@triton.jit
def reciprocal(x):
    """Return 1 / x of x in [1, ∞], to one unit in the last place."""
    if INTERPRETED:
        return 1.0 / x
    return tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1)


@triton.jit
def sigmoid(x):
    """Return 1 / (1 + exp -x)."""
    return reciprocal(1.0 + exp(-x))


@triton.jit
def softplus(x):
    """Return log(1 + exp x), to rounding even if exp x is much smaller than 1.

    log(1 + u) = 2 artanh s with s = u / (2 + u), of which seven terms are enough for s up to 1/3.
    """
    u = exp(-tl.abs(x))
    s = u * reciprocal(2.0 + u)
    p = s * s
    series = 1.0 + p * (1 / 3 + p * (1 / 5 + p * (1 / 7 + p * (1 / 9 + p * (1 / 11 + p * (1 / 13))))))
    return tl.maximum(x, 0.0) + 2.0 * s * series


@triton.jit
def rows_of_8(x, block, c, count, STRIDE: tl.constexpr, K: tl.constexpr):
    """Load rows of x, STRIDE apart, as eight fp32 tiles [C/8, BK]. Rows from `count` and columns from K are zero."""
    tiles = ()
    at = block[:, None] * (8 * STRIDE) + c[None, :]
    for i in tl.static_range(8):
        mask = (block * 8 < count - i)[:, None] & (c < K)[None, :]
        tiles = tiles + (tl.load(x + at + i * STRIDE, mask, 0.0).to(tl.float32),)
    return tiles


@triton.jit
def stacked(tiles, C: tl.constexpr, BK: tl.constexpr):
    """Return eight tiles [C/8, BK] as one, [C, BK]."""
    low = tl.join(tl.join(tiles[0], tiles[1]), tl.join(tiles[2], tiles[3]))
    high = tl.join(tl.join(tiles[4], tiles[5]), tl.join(tiles[6], tiles[7]))
    return tl.reshape(tl.permute(tl.join(low, high), (0, 4, 3, 2, 1)), (C, BK))


@triton.jit
def unstacked(x, C: tl.constexpr, BK: tl.constexpr):
    """Return [C, BK] as eight tiles [C/8, BK]."""
    low, high = tl.split(tl.permute(tl.reshape(x, (C // 8, 2, 2, 2, BK)), (0, 4, 3, 2, 1)))
    a, b = tl.split(low)
    c, d = tl.split(high)
    first, second = tl.split(a), tl.split(b)
    third, fourth = tl.split(c), tl.split(d)
    return (
        first[0], first[1], second[0], second[1], third[0], third[1], fourth[0], fourth[1],
    )  # fmt: skip


@triton.jit
def vectors_of_8(
    x, rstd, block, c, count, STRIDE: tl.constexpr, K: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    """Load queries or keys as eight tiles, divided by their norms if asked. rstd: reciprocal norms, [C]."""
    tiles = rows_of_8(x, block, c, count, STRIDE, K)
    if not NORM:
        return tiles
    unit = ()
    for i in tl.static_range(8):
        unit = unit + (tiles[i] * tl.load(rstd + block * 8 + i)[:, None],)
    return unit


@triton.jit
def erase_gates_of_8(
    b, block, c, count, erase_range, STRIDE: tl.constexpr, K: tl.constexpr, ACTIVATE: tl.constexpr,
):  # fmt: skip
    """Load b as eight tiles, from raw projections if ACTIVATE."""
    tiles = rows_of_8(b, block, c, count, STRIDE, K)
    if not ACTIVATE:
        return tiles
    gates = ()
    for i in tl.static_range(8):
        gates = gates + (erase_range * sigmoid(tiles[i]),)
    return gates


@triton.jit
def decays_of_8(
    g, rate, bias, block, c, count, H: tl.constexpr, K: tl.constexpr, ACTIVATE: tl.constexpr,
):  # fmt: skip
    """Load α = exp(g) as eight tiles, from raw projections if ACTIVATE. It is 1 beyond `count` tokens."""
    g_i = rows_of_8(g, block, c, count, H * K, K)
    alpha = ()
    for i in tl.static_range(8):
        log_decay = g_i[i]
        if ACTIVATE:
            log_decay = rate * softplus(log_decay + bias[None, :])
            log_decay = tl.where((block * 8 + i < count)[:, None] & (c < K)[None, :], log_decay, 0.0)
        alpha = alpha + (exp(log_decay),)
    return alpha


@triton.jit
def products_of_8(alpha):
    """Return Π α within a block of 8 up to and including each row, and Π α after it. within[7] is the block's."""
    within = (alpha[0],)
    after = (tl.full(alpha[0].shape, 1.0, tl.float32),)
    for i in tl.static_range(1, 8):
        within = within + (within[i - 1] * alpha[i],)
        after = (after[0] * alpha[8 - i],) + after
    return within, after


@triton.jit
def sibling_product(whole, r, c, m, K: tl.constexpr):
    """Return Π α over the neighbour of each row's block of m tokens. whole: products over blocks of 8, [C/8, K]."""
    first = ((r ^ m) & -m) // 8
    product = tl.load(whole + first[:, None] * K + c[None, :], (c < K)[None, :], 1.0)
    for i in range(1, m // 8):
        product *= tl.load(whole + i * K + first[:, None] * K + c[None, :], (c < K)[None, :], 1.0)
    return product


@triton.jit
def level_mask(r, m):
    """Return the mask [C, C] of the pairs at level m: row and key in neighbouring blocks of m, the row on the right.

    It is written in whole blocks, so that the compiler sees that m keys in a row share it and does not split loads.
    """
    block = r // m
    return (block[:, None] == block[None, :] + 1) & ((block & 1) == 1)[:, None]


@triton.jit
def reciprocal_norms(x, r, count, STRIDE: tl.constexpr, K: tl.constexpr, BK: tl.constexpr):
    """Return 1 / √(Σ x² + 1e-6) of the rows x[r], [C]."""
    square = tl.zeros(r.shape, tl.float32)
    for start in range(0, K, BK):
        c = start + tl.arange(0, BK)
        at, mask = r[:, None] * STRIDE + c[None, :], (r < count)[:, None] & (c < K)[None, :]
        x_i = tl.load(x + at, mask, 0.0).to(tl.float32)
        square += tl.sum(x_i * x_i, 1)
    return tl.rsqrt(square + 1e-6)
