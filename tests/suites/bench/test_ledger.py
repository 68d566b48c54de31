"""The kernels' time on paper: machine code parsed, loops found, counts and times by hand."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from mixers import backends
from run import app
from suites.bench import ledger, training
from suites.bench.ledger import Instruction


def line(address: int, text: str, stall: int) -> str:
    return f"        /*{address:04x}*/    {text} ;    /* 0x0000000000007918 */\n    /* 0x{stall << 41:016x} */\n"


# A loop of four instructions inside a loop of six; after the end, the padding that jumps to itself.
LISTING = "".join(
    line(16 * i, text, stall)
    for i, (text, stall) in enumerate(
        [
            ("LDC R1, c[0x0][0x28]", 1),
            ("MUFU.EX2 R2, R2", 2),
            ("HMMA.16816.F32.BF16 R4, R8, R6, R4", 4),
            ("LDS.128 R4, [R9]", 1),
            ("@!P0 BRA 0x20", 5),
            ("BAR.SYNC.DEFER_BLOCKING 0x0", 6),
            ("@P1 BRA 0x10", 5),
            ("HGMMA.64x32x16.F32.BF16 R24, R24, gdesc[UR4], R24", 3),
            ("EXIT", 5),
            ("BRA 0x90", 0),
        ]
    )
)


def test_loops_are_branches_backwards_before_the_end() -> None:
    code = ledger.parse(LISTING)
    assert [x.operation for x in code][:3] == ["LDC", "MUFU.EX2", "HMMA.16816.F32.BF16"]
    assert [x.stall for x in code] == [1, 2, 4, 1, 5, 6, 5, 3, 5, 0]
    assert ledger.loops(code) == [(0x10, 0x60), (0x20, 0x40)]


def test_trips_of_loops_multiply() -> None:
    found = ledger.totals(ledger.parse(LISTING), [2, 3])
    assert found["issue"] == 3 + 2 * 3 + 6 * 3
    assert found["chain"] == 1 + 3 + 5 + 2 * (2 + 6 + 5) + 6 * (4 + 1 + 5)
    assert found["shared"] == 6 * 4 and found["special"] == 2 and found["barriers"] == 2
    # 2·16·8·16 FLOPs a warp, and 2·64·32·16 by four warps, at 4096 a cycle.
    assert found["tensor"] == 6 * 1 + 4
    assert ledger.totals(ledger.parse(LISTING), [2, 0])["tensor"] == 4


def test_code_with_other_loops_than_expected_is_not_counted() -> None:
    with pytest.raises(
        ValueError, match=r"the code has 2 loops \(0x10–0x60, 0x20–0x40\), and 1 trip counts were given"
    ):
        ledger.totals(ledger.parse(LISTING), [2])


def test_shared_memory_and_matrix_instructions_by_width() -> None:
    def of(operation: str) -> Instruction:
        return Instruction(0, operation, "", 1)

    widths = {"LDS": 1, "STS.64": 2, "LDS.128": 4, "LDSM.16.M88.4": 4, "SHFL.BFLY": 1, "FADD": 0}
    assert {name: ledger.wavefronts(of(name)) for name in widths} == widths
    assert ledger.tensor_cycles(of("HMMA.1688.F32.TF32")) == 2 * 16 * 8 * 8 / 2048
    assert ledger.tensor_cycles(of("FFMA")) == 0


@pytest.mark.parametrize(
    ("registers", "shared", "warps", "expected"),
    [(253, 16384, 8, 1), (222, 24576, 4, 2), (32, 0, 4, 16), (64, 151552, 4, 1)],
)
def test_blocks_that_fit_a_multiprocessor(registers: int, shared: int, warps: int, expected: int) -> None:
    assert ledger.blocks(registers, shared, warps) == expected


def test_times_on_paper_follow_from_the_counts() -> None:
    row = {
        "kernel": "intra_chunk", "num_warps": 4, "programs_per_chunk_head": 1, "blocks": 2, "issue": 1000.0,
        "tensor": 10.0, "shared": 100.0, "special": 20.0, "chain": 3000.0, "bytes_per_chunk_head": 3e5 / 8.192,
    }  # fmt: skip
    ms = ledger.on_paper(row)
    warps = 4 * 8192 / 132
    assert ms["bytes"] == pytest.approx(0.1)
    assert ms["issue"] == pytest.approx(1e3 * warps * 1000 / 4 / 1.7e9)
    assert ms["special"] == pytest.approx(1e3 * warps * 20 * 2 / 1.7e9)
    assert ms["chain"] == pytest.approx(1e3 * 32 * 3000 / 1.7e9)  # ⌈8192 / 264⌉ waves
    scan = ledger.on_paper(row | {"kernel": "scan_forward", "programs_per_chunk_head": 4})
    assert scan["chain"] == pytest.approx(1e3 * 512 * 3000 / 1.7e9)  # 64 programs at once, 512 chunks each
    text = ledger.render(
        [row | {"configuration": {"BK": 16}, "num_stages": 1, "barriers": 7.0, "failed": None, "ms": ms}]
        + [row | {"configuration": {"BK": 32}, "num_stages": 1, "failed": "the code has 3 loops"}]
    )
    assert "0.10 by bytes" in text and "not counted: the code has 3 loops" in text


@pytest.mark.parametrize("command", [["ledger"], ["throughput", "--preset", "cpu-150k"]])
def test_a_folder_for_the_output_file_is_refused_before_the_work(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_reached(*arguments: object) -> None:
        raise AssertionError("the work has begun")

    monkeypatch.setattr(ledger, "run", not_reached)
    monkeypatch.setattr(training, "run", not_reached)
    monkeypatch.setattr(backends, "interpreted", lambda: False)
    result = CliRunner().invoke(app, ["bench", *command, "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert f"--out: {tmp_path} is a folder; give a JSON file" in result.output
