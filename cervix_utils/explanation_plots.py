"""Figures of explanations: maps on pictures, shares by class, controls and faithfulness. Arrays + Axes -> Axes."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from cervix_utils.plots import COLOURS, readable

DIVERGING = "cividis"  # blue, grey, yellow: safe for colour-blind readers; dark, grey, light in print


def overlay(ax: Axes, image: np.ndarray, heat: np.ndarray, scale: float, title: str = "") -> Axes:
    """A map (s, s) over a grey picture uint8 (3, s, s); ``scale``: the value at full colour, shared by all panels."""
    ax.imshow(image.mean(axis=0), cmap="gray", vmin=0, vmax=255)
    strength = np.clip(np.abs(heat) / scale, 0, 1)
    ax.imshow(heat, cmap=DIVERGING, vmin=-scale, vmax=scale, alpha=0.75 * strength)
    ax.set_title(title, fontsize=8)
    ax.axis("off")
    return ax


def mask_outline(
    ax: Axes, image: np.ndarray, mask: np.ndarray, nucleus: int, cell: Sequence[int], title: str = ""
) -> Axes:
    """The picture with the outlines of nucleus (solid) and cell (dashed), where they are in view."""
    ax.imshow(image.transpose(1, 2, 0))
    for inside, width, style in ((mask == nucleus, 1.2, "-"), (np.isin(mask, cell), 0.8, "--")):
        if inside.any() and not inside.all():
            ax.contour(inside, levels=[0.5], colors="#FFFFFF", linewidths=width, linestyles=style)
    ax.set_title(title, fontsize=8)
    ax.axis("off")
    return ax


def gallery(
    axes: np.ndarray, pictures: np.ndarray, masks: np.ndarray, maps: np.ndarray, titles: Sequence[str], scale: float
) -> None:
    """Paper H, Fig. 8, one image a column of ``axes`` (3, n): picture with outlines of nucleus and cell (palette indices
    2 and 3), map, map over the picture. ``scale``: the value at full colour, one for all; its bar stands on the right."""
    for column, picture, mask, heat, title in zip(axes.T, pictures, masks, maps, titles):
        if (mask > 0).any():
            mask_outline(column[0], picture, mask, 2, [2, 3], title)
        else:
            column[0].imshow(picture.transpose(1, 2, 0))
            column[0].set_title(title, fontsize=8)
            column[0].axis("off")
        drawn = column[1].imshow(heat, cmap=DIVERGING, vmin=-scale, vmax=scale)
        column[1].axis("off")
        overlay(column[2], picture, heat, scale)
    bar = plt.colorbar(drawn, ax=axes[1:, -1], fraction=0.08, pad=0.04)
    bar.ax.tick_params(labelsize=7)


def medians_by_class(ax: Axes, found: dict[str, pd.DataFrame], classes: Sequence[str], title: str = "") -> Axes:
    """Medians with 95 % intervals by class (``regions.medians``), one line for each of ``found``."""
    places = np.arange(len(classes))
    for index, (name, table) in enumerate(found.items()):
        table = table.reindex(classes)
        spread = np.abs(table[["low", "high"]].to_numpy(dtype=float).T - table["value"].to_numpy(dtype=float))
        ax.errorbar(places + 0.08 * (index - (len(found) - 1) / 2), table["value"], yerr=spread, fmt="o-", markersize=4,
                    capsize=2, linewidth=1, color=COLOURS[index % len(COLOURS)], label=name)  # fmt: skip
    ax.set_xticks(places, [readable(name) for name in classes], rotation=30, ha="right", rotation_mode="anchor")
    ax.set(title=title)
    return ax


def cascade(ax: Axes, table: pd.DataFrame) -> Axes:
    """Similarity with the trained network's maps as layers are randomised from the top (``controls.down_the_cascade``)."""
    for form, colour in (("signed", "#4477AA"), ("absolute", "#AA3377")):
        rows = table[table["form"] == form]
        ax.plot(rows["layer"], rows["value"], "o-", color=colour, label=form, markersize=4)
        ax.fill_between(rows["layer"], rows["low"], rows["high"], color=colour, alpha=0.2, linewidth=0)
    ax.axhline(0, color="0.5", linewidth=1)
    ax.set(xlabel="randomised from the top down to", ylabel="rank correlation", ylim=(-0.3, 1.05))
    return ax


def curves(ax: Axes, found: dict[str, np.ndarray], title: str = "") -> Axes:
    """Mean deletion or insertion curves (``faithfulness.curve``, (n, points + 1)) by method; the last is dashed: control."""
    for index, (name, values) in enumerate(found.items()):
        shares = np.linspace(0, 1, values.shape[1])
        last = index == len(found) - 1
        ax.plot(shares, values.mean(axis=0), "--" if last else "-", label=name, linewidth=1.4,
                color="0.3" if last else COLOURS[index % len(COLOURS)])  # fmt: skip
    ax.set(title=title, xlabel="share of pixels", ylabel="mean severity score")
    return ax


def _squares(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Means of the squares of a map (s, s) that start at ``edges`` along both sides."""
    sums = [
        np.add.reduceat(np.add.reduceat(one, edges, axis=0), edges, axis=1) for one in (values, np.ones_like(values))
    ]
    return sums[0] / sums[1]


def mean_maps(axes: Sequence[Axes], maps: np.ndarray, labels: pd.Series, classes: Sequence[str]) -> None:
    """Mean positive map of every class, on one of ``axes`` each, on the row's own scale; no photograph can be seen.

    Drawn as means of squares, 32 at most along a side: areas, no bitmap, in a page that stays small."""
    side = maps.shape[1]
    step = -(-side // 32)
    edges = np.arange(0, side, step)
    means = [np.maximum(maps[(labels == name).to_numpy()], 0) for name in classes]
    means = [some.mean(axis=0) if len(some) else None for some in means]
    means = [some if some is None else _squares(some, edges) for some in means]
    top = max([some.max() for some in means if some is not None], default=0) or 1
    for ax, some, name in zip(axes, means, classes):
        if some is not None:
            ax.contourf(some, levels=np.linspace(0, top, 11), cmap="Greys", vmin=0, vmax=top)
            ax.invert_yaxis()
        ax.set_title(f"{readable(name)}, mean of {(labels == name).sum()}", fontsize=8)
        ax.set(xticks=[], yticks=[], aspect="equal")


def by_severity(
    ax: Axes,
    table: pd.DataFrame,
    column: str,
    classes: Sequence[str],
    title: str = "",
    line: float | None = None,
) -> Axes:
    """Distribution of one column by severity class; ``line``: the value of a map that knows nothing. Empty axes where
    no value is known (no masks)."""
    known = table[np.isfinite(table[column].astype(float))]
    if len(known):
        sns.boxplot(known, x="label", y=column, order=list(classes), ax=ax, color="#DDE6F0", linewidth=1, fliersize=2)
        low, high = known[column].quantile([0.03, 0.97])  # a few shares explode
        ax.set_ylim(low - 0.1 * (high - low) - 0.1, high + 0.1 * (high - low) + 0.1)
    if line is not None:
        ax.axhline(line, color="#AA3377", linestyle="--", linewidth=1)
    ax.set_xticks(
        range(len(classes)),
        [readable(name) for name in classes],
        rotation=35,
        ha="right",
        rotation_mode="anchor",
    )
    ax.set(xlabel="", ylabel="", title=title)
    return ax
