"""Arrays and tables + Axes -> Axes. One scale, one palette, words a clinician reads; numbers beside every figure."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib_inline.backend_inline import set_matplotlib_formats

PARTS = {
    "train": "#4477AA",
    "valid": "#CCBB44",
    "test": "#AA3377",
}  # Tol's palette: safe for colour-blind readers
PROTOCOLS = {"paper": "#BBBBBB", "grouped": "#4477AA", "train_only": "#228833"}
COLOURS = [
    "#4477AA",
    "#CCBB44",
    "#AA3377",
    "#228833",
    "#66CCEE",
    "#EE6677",
    "#BBBBBB",
    "#000000",
]  # pipelines, in order


def style() -> None:
    """Figures as SVG, sharp at any zoom, with text kept as text; one look for all notebooks."""
    set_matplotlib_formats("svg", metadata={"Date": None})  # the same figure gives the same file
    sns.set_theme(context="notebook", style="whitegrid", font_scale=0.85)
    plt.rcParams.update(
        {
            "svg.hashsalt": "cervix",
            "svg.fonttype": "none",
            "figure.constrained_layout.use": True,
            "axes.titlesize": "medium",
        }
    )


def readable(name: str) -> str:
    """``light_dysplastic`` -> ``light dysplastic``, for axes."""
    return name.replace("_", " ")


def confusion(ax: Axes, matrix: np.ndarray, classes: Sequence[str], title: str = "") -> Axes:
    """Confusion matrix (k, k) of counts; rows are the reference standard, shade is the share of the row."""
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    labels = [readable(name) for name in classes]
    notes = [[f"{n:.0f}\n{s:.0%}" for n, s in zip(row, shares)] for row, shares in zip(matrix, share)]
    sns.heatmap(share, annot=np.array(notes), fmt="", vmin=0, vmax=1, cmap="Blues", cbar=False, square=True, ax=ax,
                xticklabels=labels, yticklabels=labels)  # fmt: skip
    ax.tick_params(axis="x", rotation=35)
    ax.tick_params(axis="y", rotation=0)
    plt.setp(ax.get_xticklabels(), ha="right", rotation_mode="anchor")
    ax.set(xlabel="predicted", ylabel="reference standard", title=title)
    return ax


def losses(ax: Axes, history: pd.DataFrame, kept: int, title: str = "") -> Axes:
    """Training and validation loss per epoch; the dashed line marks the epoch whose weights are kept."""
    for part in ("train", "valid"):
        ax.plot(history["epoch"], history[f"{part}_loss"], "o-", label=part, color=PARTS[part], markersize=4)
    ax.axvline(kept, color="0.5", linestyle="--", linewidth=1, label="kept")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set(xlabel="epoch", ylabel="loss", title=title)
    ax.legend(frameon=False)
    return ax


def score_distribution(ax: Axes, predictions: pd.DataFrame, classes: Sequence[str], title: str = "") -> Axes:
    """Predicted severity scores by class of the reference standard (paper H, Fig. 2 and 5): boxes and every image."""
    order = list(classes)
    shared = {"data": predictions, "x": "score", "y": "label", "order": order, "ax": ax}
    sns.boxplot(**shared, color="#DDE6F0", fliersize=0, linewidth=1)
    sns.stripplot(**shared, color="#4477AA", size=2.5, alpha=0.6, jitter=0.25)
    ax.set_yticks(range(len(order)), [f"{readable(name)} ({grade})" for grade, name in enumerate(order, 1)])
    ax.set(xlabel="predicted severity score", ylabel="", title=title, xlim=(0.5, len(order) + 0.5))
    ax.set_xticks(range(1, len(order) + 1))
    return ax


def with_intervals(
    ax: Axes, table: pd.DataFrame, labels: Sequence[str], colour: str, offset: float = 0, name: str = ""
) -> Axes:
    """Points with 95 % intervals, one row of ``table`` (value, low, high) a line; ``labels`` name the lines."""
    places = np.arange(len(table)) + offset
    spread = np.abs(table[["low", "high"]].to_numpy().T - table["value"].to_numpy())
    ax.errorbar(table["value"], places, xerr=spread, fmt="o", color=colour, markersize=5, capsize=2, label=name)
    ax.set_yticks(range(len(table)), labels)
    ax.set_ylim(len(table) - 0.5, -0.5)
    return ax


def blanked(ax: Axes, numbers: pd.DataFrame, metric: str, chance: float) -> Axes:
    """One metric with 95 % intervals by what was blanked (``shortcuts.numbers``), one colour a pipeline; dashed: chance."""
    pipelines = list(dict.fromkeys(numbers["pipeline"]))
    for index, name in enumerate(pipelines):
        rows = numbers[(numbers["pipeline"] == name) & (numbers["metric"] == metric)]
        shift = 0.16 * (index - (len(pipelines) - 1) / 2)
        with_intervals(ax, rows, list(rows["blanked"]), f"C{index}", shift, name)
    ax.axvline(chance, color="0.5", linestyle="--", linewidth=1, label="chance")
    ax.set(xlabel=readable(metric), ylabel="blanked")
    return ax


def counts(
    ax: Axes, table: pd.DataFrame, column: str, order: Sequence[str], published: dict[str, int] | None = None
) -> Axes:
    """Images per class, with the published count as an open diamond."""
    found = table[column].value_counts().reindex(order, fill_value=0)
    ax.barh(range(len(order)), found, color="#4477AA", label="found here")
    if published:
        ax.plot(
            [published[name] for name in order],
            range(len(order)),
            "D",
            mfc="none",
            color="#AA3377",
            label="published",
        )
        ax.legend(frameon=False)
    ax.set_yticks(range(len(order)), [readable(name) for name in order])
    ax.invert_yaxis()
    ax.set(xlabel="images")
    return ax


def sizes(ax: Axes, table: pd.DataFrame, order: Sequence[str], title: str = "") -> Axes:
    """Image area by class, on a log scale: what size alone tells."""
    area = table.assign(area=table["width"] * table["height"])
    sns.boxplot(area, x="area", y="label", order=list(order), ax=ax, color="#DDE6F0", linewidth=1, fliersize=2)
    ax.set(xscale="log", xlabel="image area (pixels)", ylabel="", title=title)
    ax.set_yticks(range(len(order)), [readable(name) for name in order])
    return ax


def pictures(axes: np.ndarray, images: np.ndarray, titles: Sequence[str]) -> np.ndarray:
    """uint8 pictures (n, 3, s, s) on the first n of ``axes``; the others stay empty."""
    for ax in axes.flat:
        ax.axis("off")
    for ax, image, title in zip(axes.flat, images, titles):
        ax.imshow(image.transpose(1, 2, 0))
        ax.set_title(title, fontsize=8)
    return axes


def against_published(ax: Axes, beside: pd.DataFrame, title: str = "") -> Axes:
    """Ours with intervals, by protocol, and the published values as diamonds (``comparison.beside_published``)."""
    lines = beside.drop_duplicates(["pipeline", "metric"])
    names = [f"{row.pipeline}: {readable(row.metric)}" for row in lines.itertuples()]
    for index, (protocol, rows) in enumerate(beside.groupby("protocol")):
        rows = lines[["pipeline", "metric"]].merge(rows, how="left")  # a line stays empty where a protocol lacks it
        with_intervals(ax, rows, names, PROTOCOLS[protocol], 0.2 * index, protocol)
    ax.plot(lines["published"], range(len(lines)), "D", mfc="none", color="#AA3377", label="published")
    ax.set(title=title, xlabel="value with 95 % interval")
    return ax


def auc_over_folds(ax: Axes, auc: pd.DataFrame, classes: Sequence[str], title: str = "") -> Axes:
    """AUC per class, one point a fold (paper H, Fig. 7): classification beside classification + regression.

    ``auc``: columns pipeline, label (class), value.
    """
    for shift, name, colour in ((-0.1, "classification", "#4477AA"), (0.1, "combined", "#AA3377")):
        rows = auc[(auc["pipeline"] == name) & auc["label"].isin(classes)]
        ax.plot(
            rows["label"].map(list(classes).index).astype(float) + shift, rows["value"], "o", color=colour, label=name
        )
    labels = [readable(name) for name in classes]
    ax.set_xticks(range(len(classes)), labels, rotation=30, ha="right", rotation_mode="anchor")
    ax.set(title=title, ylabel="AUC")
    return ax
