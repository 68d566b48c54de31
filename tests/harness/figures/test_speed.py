"""Figures of speed show measured rates next to the paper's, decoding over context, and kernels over their floor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from harness.figures.collection import write_figure
from harness.figures.speed import (
    bench_numbers,
    decode,
    decode_numbers,
    floor_ms,
    kernels,
    throughput,
    throughput_numbers,
)
from harness.figures.style import LOOK, WIDTH
from harness.records import stats
from tests.harness.figures.figure_records import reading
from tests.harness.tables.table_records import record, store


def step(mixer: str, length: int, rate: float | None) -> dict[str, Any]:
    """The fields of a row of `bench throughput --out` that a figure reads."""
    spread = {"tokens_per_s_p20": rate and rate * 0.9, "tokens_per_s_p80": rate and rate * 1.1}
    row = {
        "mixer": mixer,
        "display": mixer.upper(),
        "layout": "recurrent",
        "length": length,
        "batch": 16384 // length,
        "preset": "125m",
    }
    return row | {"device": "a GPU", "dtype": "bfloat16", "tokens_per_s": rate, "refused": None} | spread


def test_throughput_stands_beside_the_papers_figure_2(tmp_path: Path) -> None:
    rows = [step("gdn2", 2048, 3e5), step("gdn2", 4096, 2e5), step("kda", 2048, None)]
    (tmp_path / "throughput-2048.json").write_text(json.dumps(rows[::2]))
    (tmp_path / "throughput-4096.json").write_text(json.dumps(rows[1:2]))
    assert write_figure(tmp_path, "throughput") == [tmp_path / "throughput.png", tmp_path / "throughput.svg"]
    paper, own = throughput(bench_numbers(rows)).get_axes()
    assert len(paper.get_lines()) == 7 and paper.get_lines()[-1].get_ydata()[0] == pytest.approx(38.0)
    (line,) = own.get_lines()
    np.testing.assert_allclose(line.get_xydata(), [(0, 300), (1, 200)])
    assert own.get_xticks().tolist() == [0, 1]
    assert [label.get_text() for label in own.get_xticklabels()] == ["2K×8", "4K×4"]
    assert len(throughput(None).get_axes()) == 1
    with pytest.raises(ValueError, match="none of the 1 rows has a time"):
        bench_numbers(rows[2:])


def test_throughput_is_drawn_from_records_of_its_suite(tmp_path: Path) -> None:
    rate = "train_tokens_per_second"
    made = [
        record(
            "GDN2", f"batch_{16384 // n}", rate, 1e5, 1e3, 7, length=n, suite="throughput", mixer="gdn2", layout=layout
        )
        for n in (2048, 4096)
        for layout in ("recurrent", "hybrid")
    ]
    numbers = throughput_numbers(store(tmp_path, made))
    assert numbers[["length", "batch"]].drop_duplicates().values.tolist() == [[2048, 8], [4096, 4]]
    assert set(numbers["line"]) == {"GDN2 (recurrent)", "GDN2 (hybrid)"}
    assert (numbers["high"] - 1e5).tolist() == pytest.approx([1e3 * 2.447] * 4, rel=1e-3)  # t with 6 degrees
    _, own = throughput(numbers).get_axes()
    assert len(own.get_lines()) == 2 and own.get_title().startswith("cpu-1m, recurrent, hybrid; 95% interval")


def placed(axes: Any) -> dict[str, tuple[float, float]]:
    """The point of the first line at every tick, by the tick's label."""
    (points,) = [dict(line.get_xydata().tolist()) for line in axes.get_lines()[:1]]
    labels = (label.get_text() for label in axes.get_xticklabels())
    return {label: points[tick] for tick, label in zip(axes.get_xticks(), labels, strict=True)}


def test_every_shape_of_throughput_has_its_own_place_under_its_name(tmp_path: Path) -> None:
    shapes = {(2, 64): 2e4, (1, 128): 3e4, (1, 64): 1e4}
    made = [
        record(
            "GDN2", f"batch_{b}", "train_tokens_per_second", rate, 1e2, 7, length=n, suite="throughput", mixer="gdn2"
        )
        for (b, n), rate in shapes.items()
    ]
    paper, own = throughput(throughput_numbers(store(tmp_path, made))).get_axes()
    assert placed(own) == {"64×1": 10, "64×2": 20, "128×1": 30}
    assert [placed(paper)[name] for name in ("2K×8", "4K×4", "8K×2", "16K×1")] == [45.8, 42.3, 36.8, 29.4]
    assert (np.diff(own.get_lines()[0].get_xdata()) > 0).all()


@pytest.fixture
def decoded(tmp_path: Path) -> pd.DataFrame:
    """Two mixers over two batches and lengths; attention has no room for 16 contexts of 8K."""
    made = []
    for batch in (16, 1):
        for length in (8192, 2048):
            full = batch * length == 16 * 8192
            made += reading("gdn2", batch, length, 2.0**20)
            made += reading("attention", batch, length, None if full else 2048.0 * length, "attention")
    return store(tmp_path / "decode", made)


def test_decoding_has_a_panel_per_metric_and_batch_and_a_line_per_mixer(decoded: pd.DataFrame) -> None:
    drawn = decode(decode_numbers(decoded))
    assert drawn.get_size_inches()[0] == WIDTH
    axs = drawn.get_axes()
    assert [axes.get_title() for axes in axs[:3]] == [
        "prefill tokens/s",
        "decoding tokens/s",
        "state, bytes a sequence",
    ]
    assert len(axs) == 6 and [axs[i].get_ylabel() for i in (0, 3)] == ["batch_1", "batch_16"]
    for axes in axs:
        assert {to_hex(line.get_color()).upper() for line in axes.get_lines()} == {
            LOOK["gdn2"][0],
            LOOK["attention"][0],
        }
        assert axes.get_xticks().tolist() == [2048, 8192]
        assert [label.get_text() for label in axes.get_xticklabels()] == ["2K", "8K"]
    prefill, decoding, state = (
        {line.get_marker(): line.get_xydata().tolist() for line in axes.get_lines()} for axes in axs[:3]
    )
    own, attention = LOOK["gdn2"][1], LOOK["attention"][1]
    assert prefill[own] == [[2048, 1000], [8192, 1000]] and decoding[own] == [[2048, 40], [8192, 40]]
    assert state == {own: [[2048, 2**20], [8192, 2**20]], attention: [[2048, 2**22], [8192, 2**24]]}
    assert [label.get_text() for label in axs[2].get_yticklabels()] == ["1 MiB", "2 MiB", "4 MiB", "8 MiB", "16 MiB"]
    half = stats.estimate([40.0], [1.0], [5]).interval[1] - 40
    edge = {round(y, 6) for y in axs[1].collections[0].get_paths()[0].vertices[:, 1].tolist()}
    assert edge == {round(40 - half, 6), round(40 + half, 6)}


def test_what_ran_out_of_memory_is_named_and_not_drawn(decoded: pd.DataFrame, tmp_path: Path) -> None:
    drawn = decode(decode_numbers(decoded))
    assert drawn.get_suptitle().splitlines() == [
        "cpu-1m, recurrent; Some CPU, float32; 95% interval over windows",
        "batch_16 out of memory: ATTENTION at 8K",
    ]
    for axes in drawn.get_axes()[3:]:
        (line,) = [line for line in axes.get_lines() if line.get_marker() == LOOK["attention"][1]]
        assert line.get_xdata().tolist() == [2048]
    # A single point has no visible band; a bar shows its interval.
    (bar,) = [found for found in drawn.get_axes()[4].collections if len(found.get_paths()[0].vertices) == 2]
    half = stats.estimate([640.0], [1.0], [5]).interval[1] - 640
    np.testing.assert_allclose(bar.get_paths()[0].vertices, [(2048, 640 - half), (2048, 640 + half)])
    nothing = store(tmp_path / "full", reading("gdn2", 16, 8192, None))
    with pytest.raises(ValueError, match="every shape of the decode suite ran out of memory; list smaller ones"):
        decode(decode_numbers(nothing))


def test_decoding_keeps_machines_apart_and_writes_both_files(decoded: pd.DataFrame, tmp_path: Path) -> None:
    other = reading("gdn2", 1, 256, 2.0**10, preset="cpu-600k") + reading("gdn2", 1, 1024, 2.0**10, preset="cpu-600k")
    frame = pd.concat([decoded, store(tmp_path / "other", other)])
    drawn = decode(decode_numbers(frame))
    assert [axes.get_ylabel().split()[0] for axes in drawn.get_axes()[::3]] == ["cpu-1m,", "cpu-1m,", "cpu-600k,"]
    assert [label.get_text() for label in drawn.get_axes()[-1].get_xticklabels()] == ["256", "1K"]
    assert "batch_16, cpu-1m, recurrent; Some CPU, float32 out of memory: ATTENTION at 8K" in drawn.get_suptitle()
    frame.drop(columns="file").to_parquet(tmp_path / "records.parquet")
    assert write_figure(tmp_path, "decode") == [tmp_path / "decode.png", tmp_path / "decode.svg"]


def launch(operator: str, form: str, direction: str, steps: int, batch: int, ms: float | None, **rest: Any) -> dict:
    """The fields of a row of kernels.json that a figure reads."""
    shape = {"T": steps, "B": batch, "H": 16, "HV": 16, "K": 128, "V": 128}
    times = {"ms": ms, "ms_p20": ms and ms * 0.9, "ms_p80": ms and ms * 1.1}
    work = {"bytes": 3e9, "flops": 7e11, "copy_bytes_per_s": 3e12, "matmul_flop_per_s": 7e14}
    errors = {"output_error": 4e-3, "gradient_error": None, "state_error": None}
    row = {"operator": operator, "implementation": form, "direction": direction, "dtype": "bfloat16", "device": "a GPU"}
    return row | shape | times | work | errors | rest


def test_kernels_are_drawn_over_their_floor(tmp_path: Path) -> None:
    rows = [
        launch("gdn2", "mixerbench triton", "forward", 2048, 16, 2.0),
        launch("gdn2", "mixerbench triton", "forward", 4096, 8, 3.0, flops=2.1e12),
        launch("kda", "fla chunk", "forward", 2048, 16, 2.5, output_error=0.5),
        launch("kda", "fla recurrent", "decode", 1, 8, 0.1),
        launch("gdn2", "fla chunk", "forward", 2048, 16, None, refused="no"),
        launch("gdn2", "mixerbench triton", "forward", 4096, 8, 9.0, K=64),
    ]
    # 3 GB at 3 TB/s and 0.7 TFLOP at 700 TFLOP/s take 1 ms each, three times the FLOPs 3 ms.
    assert floor_ms(pd.DataFrame(rows[:2])).tolist() == pytest.approx([1.0, 3.0])
    (tmp_path / "kernels.json").write_text(json.dumps({"ceilings": {}, "rows": rows}))
    assert len(write_figure(tmp_path, "kernels")) == 2
    drawn = kernels(rows)
    forward, decode = drawn.get_axes()
    floors = [line.get_ydata().tolist() for line in forward.get_lines() if line.get_linestyle() == ":"]
    assert floors == [pytest.approx([1.0, 3.0]), pytest.approx([1.0])]
    names = [text.get_text() for text in drawn.legends[0].get_texts()]
    assert names[0] == "Gated DeltaNet-2, mixerbench (error ≤ 4e-03)" and names[1] == "KDA, fla (error ≤ 5e-01)"
    assert decode.get_xlabel() == "batch"
    with pytest.raises(ValueError, match="none of the 1 rows has a time"):
        kernels(rows[4:5])
