"""Plots of how far a prediction can be trusted: tables + Axes -> Axes, in the style of ``plots``."""

import pandas as pd
from matplotlib.axes import Axes


def reliability(ax: Axes, table: pd.DataFrame, name: str, colour: str, title: str = "") -> Axes:
    """Accuracy against confidence, one point a bin (``calibration.reliability``), larger where more images are."""
    filled = table[table["count"] > 0]
    ax.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1, zorder=1)
    ax.plot(filled["confidence"], filled["accuracy"], color=colour, linewidth=1, label=name)
    area = 12 + 240 * filled["count"] / filled["count"].sum()
    ax.scatter(filled["confidence"], filled["accuracy"], s=area, color=colour, alpha=0.7, linewidth=0, zorder=2)
    ax.set(xlim=(0, 1.02), ylim=(-0.02, 1.02), aspect="equal", title=title, xlabel="confidence", ylabel="accuracy")
    return ax


def risk_coverage(ax: Axes, curve: pd.DataFrame, name: str, colour: str, title: str = "") -> Axes:
    """Error among the images kept against the share of images kept, surest first (``calibration.risk_coverage``)."""
    ax.step(curve["coverage"], curve["error"], where="pre", color=colour, linewidth=1.2, label=name)
    ax.set(xlim=(0, 1), ylim=(0, 1), title=title, xlabel="share of images kept", ylabel="error among them")
    return ax
