"""Arrays and tables drawn on Axes. One palette, one style, words for people on every axis.

Figures are SVG. What may be published holds no bitmap: ``pictures``, ``overlay``, ``mask_outline``
and ``gallery`` show images, all others draw lines and areas alone.
"""

from collections.abc import Iterable, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib_inline.backend_inline import set_matplotlib_formats

from cervix_utils.data.images import CYTOPLASM, NUCLEUS
from cervix_utils.evaluation import metrics
from cervix_utils.report import words
from cervix_utils.report.words import label

Array = np.ndarray
# Tol's palette: safe for colour-blind readers
PALETTE = ["#4477AA", "#AA3377", "#228833", "#CCBB44", "#66CCEE", "#EE6677", "#BBBBBB", "#000000"]
PALE, GREY = "#DDE6F0", "0.5"
DASHED = {"color": GREY, "linestyle": "--", "linewidth": 1}
DIVERGING = "cividis"  # blue, grey, yellow: safe for colour-blind readers; dark to light in print
LOOK = {"svg.fonttype": "none", "axes.titlesize": "medium", "figure.constrained_layout.use": True}
LOOK["svg.hashsalt"] = "cervix"  # the same figure gives the same file


def style() -> None:
    """Figures as SVG with text kept as text, in one look."""
    set_matplotlib_formats("svg", metadata={"Date": None})
    sns.set_theme(context="notebook", style="whitegrid", font_scale=0.85, palette=PALETTE, rc=LOOK)


def tell(ax: Axes, x: Iterable, y: Iterable, texts: Iterable[str]) -> None:
    """A text at each point (x, y) that is known, in the drawing but not to be seen: as addresses,
    which ``pages.titled`` makes the titles that pages show on hover."""
    ax.scatter(x, y, s=150, color="white", alpha=0.01, label="_", urls=list(texts))


def look_of(name: str, index: int = 0) -> dict[str, str]:
    """Colour and marker of a pipeline, split or series, in every figure the same (words.csv); by
    ``index`` where that has none."""
    known = words.table().get(name, {"color": ""})
    spare = {"color": PALETTE[index % 8], "marker": "os^DvPX*"[index % 8]}
    return {key: known[key] for key in spare} if known["color"] else spare


def _rows(ax: Axes, names: Sequence[str]) -> None:
    """One row for each name, downwards from 0."""
    ax.set_yticks(range(len(names)), [label(name) for name in names])
    ax.set_ylim(len(names) - 0.5, -0.5)


def confusion(ax: Axes, predictions: pd.DataFrame, title: str = "") -> Axes:
    """Confusion matrix of a table of predictions: counts, and shares of the row; rows are the
    reference standard.

    Drawn as areas (scikit-learn's ConfusionMatrixDisplay is a bitmap, which may not be published)
    in the light half of a scale, so that black text can be read on each of them.
    """
    classes = metrics.class_columns(predictions)
    true, predicted = metrics.true_class(predictions), metrics.predicted_class(predictions)
    counts = metrics.confusion(true, predicted, len(classes), np.ones((1, len(true))))[0]
    names = [label(name) for name in classes]
    shares = pd.DataFrame(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1), names, names)
    text = np.vectorize("{:.0f}\n{:.0%}".format)(counts, shares)
    look = {"cmap": "Blues", "vmin": 0, "vmax": 2, "cbar": False, "square": True, "fmt": ""}
    sns.heatmap(shares, annot=text, annot_kws={"color": "black"}, ax=ax, **look)
    plt.setp(ax.get_xticklabels(), rotation=30, ha="right", rotation_mode="anchor")
    ax.tick_params(axis="y", rotation=0)
    ax.set(xlabel="predicted", ylabel="reference standard", title=title)
    text, places = "{}: {:.0f} of {:.0f} right".format, np.arange(len(names)) + 0.5
    tell(ax, places, places, map(text, names, counts.diagonal(), counts.sum(axis=1)))
    return ax


def boxes(ax: Axes, table: pd.DataFrame, column: str, classes: Sequence, log=False) -> Axes:
    """Distribution of a column by class (column ``label``); what is not finite is left out.

    The axis spans 3 to 97 % of the values, so that a few far away do not hide the others; on a log
    scale it spans all of them. Axes stay empty where nothing is finite.
    """
    finite = table[np.isfinite(table[column].astype(float))]
    if len(finite):
        look = {"color": PALE, "linewidth": 1, "fliersize": 2, "log_scale": log}
        sns.boxplot(finite, x=column, y="label", order=list(classes), ax=ax, **look)
        low, high = finite[column].quantile([0.03, 0.97])
        room = 0.1 * (high - low) + 0.1
        ax.set_xlim(None if log else (low - room, high + room))
        parts = finite.groupby("label")[column].describe().reindex(classes)
        text = "{}: median {:.3g}, half of the values from {:.3g} to {:.3g}".format
        told = map(text, map(label, classes), parts["50%"], parts["25%"], parts["75%"])
        tell(ax, parts["50%"], range(len(classes)), told)
    _rows(ax, classes)
    ax.set(xlabel="", ylabel="")
    return ax


def with_intervals(ax: Axes, table: pd.DataFrame, rows: str, series: str = "") -> Axes:
    """Points with 95 % intervals (columns value, low, high): a row for each name in column
    ``rows``, a colour for each in column ``series``. Empty where a series lacks a row."""
    names = list(dict.fromkeys(table[rows]))
    groups = table.groupby(series, sort=False) if series else [("", table)]
    step = min(0.16, 0.7 / max(len(groups), 1))
    for index, (name, group) in enumerate(groups):
        values = group.set_index(rows).reindex(names)[["value", "low", "high"]].astype(float)
        places = np.arange(len(names)) + step * (index - (len(groups) - 1) / 2)
        spread = np.abs(values[["low", "high"]].T.to_numpy() - values["value"].to_numpy())
        look = look_of(name, index) | {"capsize": 2, "markersize": 4, "linestyle": "none"}
        ax.errorbar(values["value"], places, xerr=spread, label=label(name), **look)
        told = [f"{label(name)}, {label(row)}: {metrics.written(values.loc[row])}" for row in names]
        told = [text.removeprefix(", ").removesuffix(" (nan to nan)") for text in told]
        tell(ax, values["value"], places, told)
    _rows(ax, names)
    return ax


def reliability(ax: Axes, table: pd.DataFrame, name: str, title: str = "") -> Axes:
    """Accuracy against confidence (``calibration.reliability``), larger points for more images."""
    (line,) = ax.plot("confidence", "accuracy", data=table, linewidth=1, label=name)
    told = "confidence {confidence:.2f}, accuracy {accuracy:.2f}, {count:.0f} images".format_map
    look = {"s": 12 + 240 * table["count"] / table["count"].sum(), "alpha": 0.7, "linewidth": 0}
    look["urls"] = [f"{name}: {told(point)}" for point in table.to_dict("records")]
    ax.scatter("confidence", "accuracy", data=table, color=line.get_color(), label="_", **look)
    ax.axline((0, 0), (1, 1), zorder=1, **DASHED)
    ax.set(xlim=(0, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    ax.set(xlabel="confidence", ylabel="accuracy", title=title)
    return ax


def _picture(ax: Axes, image: Array, title: str = "", **look) -> None:
    ax.imshow(image, **look)
    ax.set_title(title, fontsize=8)
    ax.axis("off")


def pictures(axes: Array, images: Array, titles: Sequence[str]) -> None:
    """uint8 images (n, 3, s, s) on the first n of ``axes``; the others stay empty."""
    for ax in axes.flat:
        ax.axis("off")
    for ax, image, title in zip(axes.flat, images, titles):
        _picture(ax, image.transpose(1, 2, 0), title)


def overlay(ax: Axes, image: Array, heat: Array, scale: float, title: str = "") -> None:
    """A map (s, s) over the grey image uint8 (3, s, s); ``scale``: the value at full colour."""
    _picture(ax, image.mean(axis=0), title, cmap="gray", vmin=0, vmax=255)
    strength = np.clip(np.abs(heat) / scale, 0, 1)
    ax.imshow(heat, cmap=DIVERGING, vmin=-scale, vmax=scale, alpha=0.75 * strength)


def mask_outline(ax: Axes, image: Array, mask: Array, title: str = "") -> None:
    """The image with the outlines of nucleus (solid) and cell (dashed), where they are in view."""
    _picture(ax, image.transpose(1, 2, 0), title)
    for region, width, dash in (([NUCLEUS], 1.2, "-"), ([NUCLEUS, CYTOPLASM], 0.8, "--")):
        inside = np.isin(mask, region)
        if inside.any() and not inside.all():
            ax.contour(inside, levels=[0.5], colors="white", linewidths=width, linestyles=dash)


def gallery(
    axes: Array, images: Array, masks: Array, maps: Array, titles: Sequence[str], scale: float
) -> None:
    """Paper H, Fig. 8: a column of ``axes`` (3, n) an image: outlines, map, map over the image.

    ``scale``: the value at full colour, one for all maps; its bar stands on the right.
    """
    for column, image, mask, heat, title in zip(axes.T, images, masks, maps, titles):
        mask_outline(column[0], image, mask, title)
        _picture(column[1], heat, cmap=DIVERGING, vmin=-scale, vmax=scale)
        overlay(column[2], image, heat, scale)
    plt.colorbar(axes[1, -1].images[0], ax=axes[1:, -1], fraction=0.08, pad=0.04)
