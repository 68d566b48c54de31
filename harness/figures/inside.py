"""Heat maps of Gated DeltaNet-2's gates over tokens and channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from harness.figures.style import drawing, panels

if TYPE_CHECKING:  # figures of collections need no model, so they do not wait for its imports
    from torch import Tensor

    from harness.figures.gate_values import Gates, Prompt

READABLE = 44
"""Longest prompt, in tokens, whose tokens are written out."""
KINDS = {
    "erase": "erase gate b, key channels",
    "write": "write gate w, value channels",
    "decay": "kept of the state, exp(g), key channels",
}
MARKS = {"needle": "#D55E00", "question": "#000000"}


def gates(layers: Sequence[Gates], prompt: Prompt) -> Figure:
    """One panel per layer and gate: channels, grouped by head, over the tokens of the prompt.

    Needle and question are marked above the panels. Colours span 0 to 1, or 0 to 2 if an erase gate exceeds 1.
    """
    written = len(prompt.ids) <= READABLE
    top = 2.0 if any(layer.erase.max() > 1 for layer in layers) else 1.0
    # Words need the whole width, so panels are stacked; without words, the panels of a layer are side by side.
    rows, columns = (len(KINDS) * len(layers), 1) if written else (len(layers), len(KINDS))
    with drawing({"axes.grid": False, "axes.spines.top": True, "axes.spines.right": True}):
        figure, axs = panels(rows, columns, 0.95 if written else 1.7, MARKS, sharex=True)
        flat = [(layer, kind) for layer in layers for kind in KINDS]
        for position, ((layer, kind), axes) in enumerate(zip(flat, axs.flat, strict=True)):
            image = _heat(axes, getattr(layer, kind), top)
            first = position < columns
            _marked(axes, prompt, named=first)
            if written:
                axes.set_title(f"layer {layer.layer}: {KINDS[kind]}", pad=7)
            elif first:
                axes.set_title("\n".join(KINDS[kind].rsplit(", ", 1)), pad=17)
            if not written and kind == "erase":
                axes.set_ylabel(f"layer {layer.layer}")
        for axes in axs[-1]:
            _tokens(axes, prompt, written)
        bar = figure.colorbar(image, ax=axs, fraction=0.015, pad=0.01, aspect=40)
        bar.ax.tick_params(labelsize=6, length=2)
    return figure


def _heat(axes: Axes, gate: Tensor, top: float) -> AxesImage:
    """Draw one gate, [T, heads, channels]."""
    _, heads, channels = gate.shape
    image = axes.imshow(
        gate.flatten(1).T.numpy(), aspect="auto", cmap="cividis", vmin=0, vmax=top, interpolation="nearest"
    )
    for head in range(1, heads):
        axes.axhline(head * channels - 0.5, color="white", linewidth=0.8)
    axes.set_yticks([(head + 0.5) * channels - 0.5 for head in range(heads)], [f"head {head}" for head in range(heads)])
    axes.tick_params(length=0, labelsize=6)
    return image


def _tokens(axes: Axes, prompt: Prompt, written: bool) -> None:
    if not written:
        axes.set_xlabel("token")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        return
    axes.set_xticks(range(len(prompt.ids)), prompt.words, rotation=90, fontsize=6.5)
    for name, (start, stop) in prompt.marks.items():
        for label in axes.get_xticklabels()[start:stop]:
            label.set(color=MARKS[name], fontweight="bold")


def _marked(axes: Axes, prompt: Prompt, named: bool) -> None:
    """Draw bars above a panel over the needle and the question, and lines through it where they begin and end."""
    for name, (start, stop) in prompt.marks.items():
        color = MARKS[name]
        for edge in (start, stop):
            if 0 < edge < len(prompt.ids):
                axes.axvline(edge - 0.5, color="white", linewidth=0.9, linestyle=(0, (2, 1)))
        top = axes.get_xaxis_transform()
        axes.plot(
            [start - 0.5, stop - 0.5],
            [1.04, 1.04],
            color=color,
            linewidth=2.5,
            transform=top,
            clip_on=False,
            solid_capstyle="butt",
        )
        if named:
            middle = (start + stop) / 2 - 0.5
            align = "right" if stop == len(prompt.ids) else "center"
            x = stop - 0.5 if align == "right" else middle
            axes.text(x, 1.07, name, color=color, ha=align, va="bottom", fontsize=6, transform=top)
