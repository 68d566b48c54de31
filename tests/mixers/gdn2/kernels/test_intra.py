"""The kernel inside chunks alone, against the torch form of the same matrices."""

import torch

from mixers.gdn2.kernels.intra import INTRA_CHUNK
from mixers.parts.delta_chunks import decay_channels
from tests.mixers.gdn2.cases import DEVICE, OUTPUT, inputs

C, K, ROWS = 16, 16, 13  # a chunk of 16 rows, three of them empty


def test_a_chunks_matrices_and_decayed_operands_are_those_of_torch() -> None:
    x = inputs(ROWS, K=K, V=16, device=DEVICE)

    def new(*shape: int) -> torch.Tensor:
        return torch.empty(1, 1, *shape, device=DEVICE)

    found = {name: new(C, K) for name in ("q_decayed", "e_decayed", "k_decayed")}
    found |= {"total": new(K), "inverse": new(C, C), "aqk": new(C, C)}
    INTRA_CHUNK(
        lambda meta: (1,),
        **{name: x[name] for name in "qkgb"}, A_log=None, dt_bias=None, **found,
        chunk_start=torch.tensor([0], device=DEVICE),
        chunk_rows=torch.tensor([ROWS], dtype=torch.int32, device=DEVICE),
        whole=new(C // 8, K), q_rstd=None, k_rstd=None, near=new(C, 8), solved=new(C, C),
        scale=0.25, erase_range=1.0, H=1, K=K, C=C, NORM=False, ACTIVATE=False, PRECISION="tf32x3",
    )  # fmt: skip
    q, k, g, b = (torch.nn.functional.pad(x[name][0, :, 0].double(), (0, 0, 0, C - ROWS)) for name in "qkgb")
    q, e = 0.25 * q, b * k
    products, reads, tails, total, _ = decay_channels(torch.stack([e, q], 1)[None], k[None], g[None])
    t, aqk = products[0].unbind(1)
    expected = {"q_decayed": reads[0, :, 1], "e_decayed": reads[0, :, 0], "k_decayed": tails[0], "total": total[0, 0]}
    expected |= {"inverse": (torch.eye(C).double() + t).inverse(), "aqk": aqk}
    for name, value in expected.items():
        assert ((found[name][0, 0].double() - value).norm() / value.norm()).item() < OUTPUT, name


def test_two_block_widths_in_warps_are_tried_unless_the_head_is_small() -> None:
    blocks = {K: [(c.kwargs["BK"], c.num_warps) for c in INTRA_CHUNK.candidates({"K": K}, 90)] for K in (16, 20, 128)}
    assert blocks == {16: [(16, 4)], 20: [(32, 4), (32, 8)], 128: [(32, 4), (32, 8)]}
    (on_ampere,) = INTRA_CHUNK.candidates({"K": 128}, 80)  # where four warps spill
    assert (on_ampere.kwargs["BK"], on_ampere.num_warps) == (32, 8)
