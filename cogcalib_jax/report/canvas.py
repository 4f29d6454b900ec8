"""Figures without pyplot: nothing global is touched, so a report can be written from anywhere."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from cogcalib_jax.files import whole_path, write_whole

DPI = 165
INK = "#222222"
MUTED = "#5F6368"
GRID = "#E3E5E8"
BAND = "#D3D6DA"
LETTERS_AN_INCH = 13.5
"""of a legend, at its size of 9.5 points"""
DARK = {
    INK: "#E4E7EB",
    MUTED: "#9AA4AF",
    GRID: "#343A41",
    BAND: "#4A5159",
    "#333333": "#D0D4D9",
    "#56B4E9": "#A6DAF7",
    "#0072B2": "#2F8AE0",
    "#1B3A6B": "#8FB3E8",
    "#6A3D9A": "#B794E0",
    "#8B1A1A": "#E07A7A",
    "#B3261E": "#EE8A80",
    "#1A237E": "#98A2F0",
}
"""Colours that a dark page replaces; all others are legible on both."""

_STYLE = {
    "font.family": "DejaVu Sans",  # comes with Matplotlib: the same picture on every machine
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.labelsize": 10,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "text.color": INK,
    "text.parse_math": False,  # names are the user's: a $ in one is a dollar
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "hatch.linewidth": 0.7,
    "svg.hashsalt": "cogcalib",  # the same names of parts, and so the same bytes, every time
}


@contextmanager
def project_style() -> Iterator[None]:
    """Apply the project's settings, whatever the user's matplotlibrc says; draw and save inside."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure, transparent; width and height in inches."""
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="none")
    FigureCanvasAgg(figure)
    return figure


def place_axes(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Add axes at a distance in inches from the figure's left and top edge.

    Automatic layouts gave panels of unequal size beside each other (tick labels differ), so places
    are computed.
    """
    full_width, full_height = figure.get_size_inches()
    return figure.add_axes(
        (
            left / full_width,
            1 - (top + height) / full_height,
            width / full_width,
            height / full_height,
        )
    )


def headline(figure: Figure, title: str, subtitle: str) -> None:
    """Write a title and a line on how to read the figure into its top 0.7 inches."""
    width, height = figure.get_size_inches()
    left = 0.12 / width
    figure.text(left, 1 - 0.12 / height, title, fontsize=13, fontweight="bold", va="top")
    figure.text(left, 1 - 0.42 / height, subtitle, fontsize=9.5, color=MUTED, va="top")


def legend_beside(figure: Figure, handles: Sequence[Any], left: float, top: float) -> None:
    """Add a legend in one column at a distance in inches from the left and top edge.

    With a dozen methods a legend inside the axes would hide what it explains. Long names are
    wrapped to the room that is left.
    """
    width, height = figure.get_size_inches()
    letters = max(int((width - left - 0.7) * LETTERS_AN_INCH), 12)
    labels = [textwrap.fill(str(handle.get_label()), letters) for handle in handles]
    figure.legend(
        handles=handles,
        labels=labels,
        loc="upper left",
        bbox_to_anchor=(left / width, 1 - top / height),
        borderaxespad=0,
        handlelength=2.6,
        labelspacing=0.7,
    )


def percent_axis(axis: Axis) -> None:
    """Show shares as whole percents; the unit stands in the axis label."""
    axis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=""))


def light_grid(axes: Axes) -> None:
    """Add a grid in pale grey."""
    axes.set_facecolor("none")
    axes.grid(True, color=GRID, linewidth=0.8)
    axes.tick_params(length=0)


def save(figure: Figure, path: Path) -> None:
    """Write `path`, a PNG, and the SVG beside it; the same content gives the same bytes.

    The SVG follows the colour scheme of the page or viewer that shows it.
    """
    with whole_path(path) as partial:
        figure.savefig(partial, format="png", facecolor="white", metadata={"Software": None})
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None})
    rules = "".join(
        f'[style*="{part}: {light.lower()}"]{{{part}:{dark}!important}}'
        for light, dark in DARK.items()
        for part in ("fill", "stroke")
    )
    style = f"<style>@media (prefers-color-scheme: dark) {{{rules}}}</style>"
    head, end, drawing = drawn.getvalue().partition(" <defs>")
    write_whole(path.with_suffix(".svg"), f"{head}{style}\n{end}{drawing}")
