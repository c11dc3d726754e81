"""Layers by positions as an image: PNG or SVG, the same bytes from the same figures.

matplotlib is imported only when an image is drawn. This module does not know what the figures mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from aird_mlx.direction.bootstrap import Floats
from aird_mlx.errors import OutputError, UsageError
from aird_mlx.workspace import write_whole

SUFFIXES = (".png", ".svg")
FRAMES = (("red", 3.0), ("darkorange", 1.5))


def check_image(path: Path) -> None:
    """Check that an image could be written to ``path``, before anything is measured.

    Raises:
        UsageError: its name ends neither in .png nor in .svg.
        OutputError: its folder does not exist.
    """
    if path.suffix not in SUFFIXES:
        raise UsageError(f"image: {path} ends in {path.suffix!r}; .png or .svg is needed. Rename it.")
    if not path.parent.is_dir():
        raise OutputError(f"image: there is no folder {path.parent}; an existing one is needed. Create it.")


def draw_heat_map(
    values: Floats, instead: Floats, path: Path, *, title: str, label: str, marks: Mapping[tuple[int, int], str]
) -> None:
    """Draw ``values`` with their figures in the cells.

    Args:
        values: ``[layer, position]``, at most 1; NaN is a cell without colour. Positions run up to -1.
        instead: ``[layer, position]``, what such cells say, in brackets.
        path: .png or .svg; written under a temporary name and renamed.
        title: above the map.
        label: what a value is.
        marks: what a frame around the cell ``(layer, position)`` means, for the legend.

    Raises:
        UsageError: as `check_image`. OutputError: as `check_image`, or it cannot be written.
    """
    check_image(path)
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    layers, positions = values.shape
    # Without a salt of our own the ids in an SVG are random, and its text would be drawn as paths.
    with mpl.rc_context({"svg.hashsalt": "aird-mlx", "svg.fonttype": "none"}):
        figure = Figure(figsize=(2.5 + 0.75 * positions, 1.8 + 0.3 * layers), layout="constrained")
        axes = figure.add_subplot()
        drawn = axes.imshow(values, cmap="viridis", vmin=0.0, vmax=1.0, aspect="auto")
        figure.colorbar(drawn, ax=axes, label=label)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("position (last prompt token: -1)")
        axes.set_ylabel("layer (input of block)")
        axes.set_xticks(range(positions), [str(position) for position in range(-positions, 0)])
        axes.set_yticks(range(layers))
        for layer in range(layers):
            for position in range(positions):
                value = float(values[layer, position])
                is_empty = math.isnan(value)
                said = f"({instead[layer, position]:.2f})" if is_empty else f"{value:.2f}"
                colour = "gray" if is_empty else "white" if value < 0.6 else "black"
                axes.text(position, layer, said, ha="center", va="center", color=colour, fontsize=8)
        for (colour, width), ((layer, position), meaning) in zip(FRAMES, marks.items(), strict=False):
            corner = (position + positions - 0.5, layer - 0.5)
            axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=colour, linewidth=width, label=meaning))
        if marks:
            figure.legend(loc="outside lower center", fontsize=8, ncols=1)
        # Dates and versions would make every image a different file.
        metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
        write_whole(path, lambda partial: figure.savefig(partial, dpi=150, metadata=metadata))
