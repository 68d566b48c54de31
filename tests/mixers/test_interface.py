"""Promises of the interface, checked on every mixer, and errors about its options."""

import pytest
import torch
from pydantic import ValidationError, model_validator

from mixers import build_mixer
from mixers.interface import MixerConfig, index_state, one_line
from mixers.registry import entries

D = 32
DELTA = {"heads": 2, "head_dim": 8, "value_heads": 4, "value_dim": 12, "chunk_size": 16}
SSM = {"d_inner": 64, "head_dim": 16, "d_state": 8}
OPTIONS = {
    "gdn2": DELTA,
    "gated_deltanet": DELTA,
    "kda": DELTA,
    "mamba2": SSM,
    "mamba3_siso": SSM,
    "mamba3_mimo": SSM | {"rank": 2},
    "attention": {"heads": 4, "kv_heads": 2},
}
CASES = [(name, options) for name, options in OPTIONS.items()] + [
    ("attention", {"heads": 2, "window": 5}),
    ("gdn2", DELTA | {"erase_gate": "scalar", "write_gate": "scalar", "erase_range": 2}),
]
every_mixer = pytest.mark.parametrize(("name", "options"), CASES, ids=[f"{n}-{i}" for i, (n, _) in enumerate(CASES)])
# float64 throughout: two orders of the same sums differ by about 1e-15, a wrong state by 1e-3.
CLOSE = {"rtol": 1e-9, "atol": 1e-11}


def mixer(name: str, options: dict) -> torch.nn.Module:
    torch.manual_seed(3)
    return build_mixer(name, D, options).double()


def test_all_seven_are_registered() -> None:
    assert set(OPTIONS) <= set(entries())


@every_mixer
def test_whole_equals_pieces_equals_token_by_token(name: str, options: dict) -> None:
    m = mixer(name, options)
    x = torch.randn(2, 41, D, dtype=torch.float64)
    whole, final = m(x, return_state=True)
    for cuts in ([0, 17, 18, 41], [0, 40, 41], list(range(42))):
        state, outputs = None, []
        for a, b in zip(cuts, cuts[1:], strict=False):
            y, state = m(x[:, a:b], state, return_state=True)
            outputs.append(y)
        torch.testing.assert_close(torch.cat(outputs, 1), whole, **CLOSE)
        for key, value in final.items():
            torch.testing.assert_close(state[key], value, **CLOSE)


@every_mixer
def test_packed_equals_separate_with_and_without_a_state(name: str, options: dict) -> None:
    m = mixer(name, options)
    before = torch.randn(3, 9, D, dtype=torch.float64)
    _, start = m(before, return_state=True)
    x = torch.randn(1, 30, D, dtype=torch.float64)
    offsets = torch.tensor([0, 12, 13, 30])
    for state in (None, start):
        packed, after = m(x, state, cu_seqlens=offsets, return_state=True)
        for i, (a, b) in enumerate(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)):
            entering = None if state is None else index_state(state, [i])
            alone, alone_after = m(x[:, a:b], entering, return_state=True)
            torch.testing.assert_close(packed[:, a:b], alone, **CLOSE)
            # The next token is the same too, whatever the layout of the joined state.
            step = torch.randn(1, 1, D, dtype=torch.float64)
            y, _ = m(step, index_state(after, [i]))
            y_alone, _ = m(step, alone_after)
            torch.testing.assert_close(y, y_alone, **CLOSE)


@every_mixer
def test_no_output_depends_on_the_future(name: str, options: dict) -> None:
    m = mixer(name, options)
    x = torch.randn(1, 40, D, dtype=torch.float64)
    changed = x.clone()
    changed[:, 23:] += 1
    y, y_changed = m(x)[0], m(changed)[0]
    # Equal up to rounding, not bitwise: a product may sum in another order when other rows change.
    torch.testing.assert_close(y[:, :23], y_changed[:, :23], **CLOSE)
    assert not torch.allclose(y[:, 23:], y_changed[:, 23:])


@every_mixer
def test_states_can_be_repeated_reordered_and_joined(name: str, options: dict) -> None:
    m = mixer(name, options)
    x = torch.randn(2, 20, D, dtype=torch.float64)
    _, short = m(x[:1, :7], return_state=True)
    _, long = m(x[1:], return_state=True)
    joined = m.cat_states([short, long])
    step = torch.randn(2, 1, D, dtype=torch.float64)
    y, after = m(step, joined, return_state=True)
    torch.testing.assert_close(y[:1], m(step[:1], short)[0], **CLOSE)
    torch.testing.assert_close(y[1:], m(step[1:], long)[0], **CLOSE)
    again, _ = m(step[[1, 0, 1]], index_state(after, [1, 0, 1]))
    once, _ = m(step, after)
    torch.testing.assert_close(again, once[[1, 0, 1]], **CLOSE)


@every_mixer
def test_a_given_state_is_left_as_it_was(name: str, options: dict) -> None:
    m = mixer(name, options)
    _, state = m(torch.randn(2, 9, D, dtype=torch.float64), return_state=True)
    before = {key: value.clone() for key, value in state.items()}
    for steps in (1, 20):
        m(torch.randn(2, steps, D, dtype=torch.float64), state, return_state=True)
    for key, value in before.items():
        assert torch.equal(state[key], value)


@every_mixer
def test_the_layer_is_differentiable_in_every_parameter(name: str, options: dict) -> None:
    m = mixer(name, options)
    x = torch.randn(1, 6, D, dtype=torch.float64, requires_grad=True)
    names = [n for n, _ in m.named_parameters()]

    def run(x: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(m, dict(zip(names, values, strict=True)), (x,))[0]

    assert torch.autograd.gradcheck(run, (x, *m.parameters()), fast_mode=True)


@every_mixer
def test_bf16_activations_keep_an_fp32_state(name: str, options: dict) -> None:
    m = build_mixer(name, D, options)
    x = torch.randn(1, 20, D)
    y, _ = m(x)
    with torch.autocast("cpu", torch.bfloat16):
        y16, state = m(x.bfloat16(), return_state=True)
    if "recurrent" in state or "ssm" in state:
        assert state.get("recurrent", state.get("ssm")).dtype == torch.float32
    # bf16 keeps 8 bits: 2^-8 per rounding, about ten of them in a row.
    assert (y16.float() - y).norm() / y.norm() < 0.05


@every_mixer
def test_cost_counts_the_parameters_that_exist(name: str, options: dict) -> None:
    m = mixer(name, options)
    cost = m.cost(64)
    assert cost.parameters == sum(p.numel() for p in m.parameters())
    assert cost.flops_per_token >= cost.parameters
    _, state = m(torch.randn(1, 64, D, dtype=torch.float64), return_state=True)
    carried = {k: v for k, v in state.items() if k in ("recurrent", "ssm", "k", "v")}
    if name in ("gdn2", "kda", "gated_deltanet"):
        carried = {"recurrent": state["recurrent"]}
    elif "ssm" in state:
        carried = {"ssm": state["ssm"]}
    if options.get("window") is None:
        assert cost.state_floats == sum(v.numel() for v in carried.values())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("transformer", {}, r"mixer: unknown name 'transformer'; known: attention, "),
        (
            "gdn2",
            {"heads": 2, "head_dim": 8, "head_size": 4},
            r"gdn2.head_size: unknown .*\(got 4\); options: heads",
        ),
        ("gdn2", {"head_dim": 8}, r"gdn2.heads: Field required; options: heads"),
        ("gdn2", {"heads": 2, "head_dim": 8, "erase_gate": "none"}, r"gdn2.erase_gate: .*\(got 'none'\)"),
        ("kda", {"heads": 2, "head_dim": 8, "value_heads": 3}, r"value_heads: 3 is no multiple of heads=2"),
        ("attention", {"heads": 5}, r"attention.heads: 5 does not divide the width 32"),
        ("attention", {"heads": 4, "kv_heads": 3}, r"attention.kv_heads: 3 does not divide heads=4"),
    ],
)
def test_a_mixer_that_cannot_be_built_is_refused_by_name(name: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_mixer(name, D, options)


class Options(MixerConfig):
    """Two options and a rule about both."""

    width: int
    depth: int = 1

    @model_validator(mode="after")
    def _fits(self) -> "Options":
        if self.depth > self.width:
            raise ValueError(f"depth: {self.depth} is above width={self.width}")
        return self


@pytest.mark.parametrize(
    ("values", "subject", "known", "line"),
    [
        (
            {"width": 2, "height": 3},
            "a.yaml",
            (),
            "a.yaml: height: unknown field; remove it or correct its name (got 3)",
        ),
        ({}, "a.yaml", (), "a.yaml: width: Field required"),
        ({}, "gdn2.", ["width", "depth"], "gdn2.width: Field required; options: width, depth"),
        ({"width": 2, "depth": 3}, "a.yaml", (), "a.yaml: depth: 3 is above width=2"),
        ({"width": 2, "depth": 3}, "gdn2.", ["width"], "gdn2: depth: 3 is above width=2; options: width"),
    ],
)
def test_a_wrong_option_is_one_line_with_field_value_and_remedy(
    values: dict, subject: str, known: tuple | list, line: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        Options.model_validate(values)
    assert one_line(caught.value, subject, known) == line


def test_input_of_another_width_is_refused() -> None:
    with pytest.raises(ValueError, match=r"x: expected \[B, T, 32\], got \[1, 4, 16\]"):
        mixer("attention", {"heads": 2})(torch.zeros(1, 4, 16, dtype=torch.float64))


@every_mixer
def test_input_without_tokens_and_the_state_of_other_rows_are_refused(name: str, options: dict) -> None:
    m = mixer(name, options)
    x = torch.randn(2, 3, D, dtype=torch.float64)
    _, state = m(x, return_state=True)
    for empty in (x[:, :0], x[:0]):
        for entering in (None, state):
            with pytest.raises(ValueError, match=r"x: \[\d, \d, 32\] holds no token; give at least one row"):
                m(empty, entering)
    for rows, sequences, offsets in (([0], 2, None), ([0, 1, 1], 2, None), ([0, 1], 3, torch.tensor([0, 2, 3, 6]))):
        wrong = index_state(state, rows)
        given = x if offsets is None else x.reshape(1, 6, D)
        with pytest.raises(ValueError, match=rf"state: '\w+' has shape .*but the input has {sequences} sequences"):
            m(given, wrong, offsets)
