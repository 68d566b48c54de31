"""Heat maps show every gate of every layer, with the needle marked."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from harness.figures.collection import write_gates
from harness.figures.gate_values import Gates, Prompt
from harness.figures.inside import READABLE, gates
from harness.lm.load import untrained_lm


def test_heat_maps_show_every_gate_with_the_needle_marked(tmp_path: Path) -> None:
    lm = untrained_lm("cpu-600k/gdn2")
    assert [path.name for path in write_gates(tmp_path, lm, "mqar", 4)] == ["gates.png", "gates.svg"]
    text = Prompt([1, 2, 3, 4], list("abcd"), {"needle": (1, 3)})
    drawn = gates([Gates(0, *(torch.full((4, 2, 8), value) for value in (0.2, 1.0, 0.9)))], text)
    panels = drawn.get_axes()[:3]
    assert [panel.get_images()[0].get_array().shape for panel in panels] == [(16, 4)] * 3
    assert [panel.get_images()[0].get_array().max() for panel in panels] == pytest.approx([0.2, 1.0, 0.9])
    assert [label.get_fontweight() for label in panels[-1].get_xticklabels()] == ["normal", "bold", "bold", "normal"]
    assert [text.get_text() for text in panels[0].texts] == ["needle"]


@pytest.mark.parametrize(("erase", "top"), [(0.9, 1.0), (1.5, 2.0)])
def test_long_prompts_have_a_row_of_panels_per_layer_and_colours_span_the_erase_range(erase: float, top: float) -> None:
    tokens = READABLE + 1
    text = Prompt(list(range(tokens)), ["a"] * tokens, {"question": (tokens - 1, tokens)})
    layers = [Gates(i, *(torch.full((tokens, 2, 8), value) for value in (erase, 0.5, 0.9))) for i in (0, 1)]
    panels = gates(layers, text).get_axes()[:6]
    assert [panel.get_ylabel() for panel in panels] == ["layer 0", "", "", "layer 1", "", ""]
    assert {panel.get_images()[0].get_clim() for panel in panels} == {(0, top)}
