"""Plots are tested on what was drawn, not on pixels."""

import io
import re
import subprocess
import sys
import warnings
from html import unescape

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex, to_rgb

from cervix_utils.data import datasets
from cervix_utils.report import pages, plots

mpl.use("agg")
import matplotlib.pyplot as plt

CLASSES = datasets.get("herlev").classes


@pytest.fixture
def grid():
    """Function: axes of so many rows and columns."""
    made = []

    def make(rows: int, columns: int) -> np.ndarray:
        figure, axes = plt.subplots(rows, columns, squeeze=False)
        made.append(figure)
        return axes

    yield make
    for figure in made:
        plt.close(figure)


def luminance(colours: np.ndarray) -> np.ndarray:
    """Relative luminance (sRGB, WCAG 2.1) of colours (n, 3)."""
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


def predictions(true: list[int], named: list[int]) -> pd.DataFrame:
    """Predictions of Herlev cells whose class is ``true`` and most probable class ``named``."""
    p = np.full((len(true), 5), 0.1)
    p[np.arange(len(true)), named] = 0.6
    table = pd.DataFrame(p, columns=[f"p_{name}" for name in CLASSES])
    score = p @ np.arange(1, 6)
    return table.assign(label=[CLASSES[k] for k in true], score=score, task="herlev")


def ticks(ax, axis: str = "y") -> list[str]:
    return [tick.get_text() for tick in getattr(ax, f"get_{axis}ticklabels")()]


def svg(figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg")
    return text.getvalue()


def test_confusion_prints_counts_and_shares_of_the_row(ax):
    plots.confusion(ax, predictions([0, 0, 0, 0, 1, 4, 4], [0, 0, 0, 1, 1, 4, 4]), "a title")
    texts = np.reshape([text.get_text() for text in ax.texts], (5, 5))
    assert list(texts[0]) == ["3\n75%", "1\n25%", "0\n0%", "0\n0%", "0\n0%"]
    assert texts[1, 1] == "1\n100%" and texts[4, 4] == "2\n100%" and texts[2, 2] == "0\n0%"
    words = [name.replace("_", " ") for name in CLASSES]
    assert ticks(ax) == ticks(ax, "x") == words
    labels = ax.get_xlabel(), ax.get_ylabel(), ax.get_title()
    assert labels == ("predicted", "reference standard", "a title")


def test_every_number_of_a_confusion_matrix_can_be_read(ax):
    """Contrast of at least 4.5 (WCAG 2.1, 1.4.3) between each number and what lies behind it."""
    true = np.repeat([0, 1, 2, 3, 4], 20)
    named = np.concatenate([np.arange(20) < share for share in (20, 16, 11, 6, 1)]).astype(int)
    plots.confusion(ax, predictions(list(true), list(named)))
    ax.figure.canvas.draw()
    behind = luminance(ax.collections[0].get_facecolors()[:, :3])
    text = luminance(np.array([to_rgb(text.get_color()) for text in ax.texts]))
    light, dark = np.maximum(behind, text), np.minimum(behind, text)
    assert ((light + 0.05) / (dark + 0.05)).min() >= 4.5
    assert np.ptp(behind) > 0.4  # and shares can be told apart


def test_intervals_are_drawn_where_they_are(ax):
    table = pd.DataFrame({"value": [0.5, 0.8], "low": [0.4, 0.7], "high": [0.7, 0.9]})
    plots.with_intervals(ax, table.assign(name=["auc_mean", "mse"]), "name")
    (bars,) = [drawn for drawn in ax.collections if hasattr(drawn, "get_segments")]
    ends = np.array(bars.get_segments())
    assert np.allclose(ends[:, :, 0], [[0.4, 0.7], [0.7, 0.9]])
    assert np.allclose(ends[:, :, 1], [[0, 0], [1, 1]])
    assert ticks(ax) == ["mean AUC", "MSE of the score"]


def test_series_have_a_colour_each_and_gaps_where_they_lack_a_row(ax):
    rows = [("a", "light_dysplastic", 0.3), ("a", "b", 0.6), ("c", "b", 0.9)]
    table = pd.DataFrame(rows, columns=["series", "class", "value"])
    table = table.assign(low=table["value"] - 0.1, high=table["value"] + 0.2)
    plots.with_intervals(ax, table, "class", "series")
    first, second = (bars.lines[0] for bars in ax.containers)
    np.testing.assert_array_equal(first.get_xdata().astype(float), [0.3, 0.6])
    np.testing.assert_array_equal(second.get_xdata().astype(float), [np.nan, 0.9])
    assert ticks(ax) == ["light dysplastic", "b"] and ax.get_legend_handles_labels()[1] == [
        "a",
        "c",
    ]
    assert to_hex(first.get_color()) != to_hex(second.get_color())
    assert np.abs(first.get_ydata() - second.get_ydata()).max() < 0.2


def titles(ax) -> list[str]:
    """The texts that a page shows on hover, as the drawing has them."""
    drawn = pages.titled(svg(ax.figure))
    return [unescape(text) for text in re.findall("<title>([^<>]*)</title>", drawn)]


def test_points_tell_their_values_and_what_is_not_known_says_nothing(ax):
    rows = [("paper", "a", 0.3, 0.2, 0.4), ("published", "b<i>&\"'", 0.9, np.nan, np.nan)]
    table = pd.DataFrame(rows, columns=["series", "class", "value", "low", "high"])
    plots.with_intervals(ax, table, "class", "series")
    first, second = titles(ax)
    assert first == "random split, a: 0.300 (0.200 to 0.400)"
    assert second == "published, b<i>&\"': 0.900"
    ax.clear()
    plots.with_intervals(ax, table[:1], "class")
    assert titles(ax) == ["a: 0.300 (0.200 to 0.400)"]


def test_boxes_matrices_and_bins_tell_their_numbers(ax):
    table = pd.DataFrame({"label": ["a"] * 5 + ["b"], "x": [1.0, 2, 3, 4, 5, np.nan]})
    plots.boxes(ax, table, "x", ["a", "b"])
    assert titles(ax) == ["a: median 3, half of the values from 2 to 4"]
    ax.clear()
    plots.confusion(ax, predictions([0, 0, 0, 1], [0, 0, 1, 0]))
    assert titles(ax)[:2] == ["normal: 2 of 3 right", "light dysplastic: 0 of 1 right"]
    ax.clear()
    bins = pd.DataFrame({"confidence": [0.25], "accuracy": [0.5], "count": [10]})
    plots.reliability(ax, bins, "as they are")
    assert titles(ax) == ["as they are: confidence 0.25, accuracy 0.50, 10 images"]


def test_many_series_stay_on_their_row(ax):
    rows = [(f"s{k}", name, 0.5, 0.4, 0.6) for k in range(12) for name in ("a", "b")]
    columns = ["series", "row", "value", "low", "high"]
    plots.with_intervals(ax, pd.DataFrame(rows, columns=columns), "row", "series")
    places = np.array([bars.lines[0].get_ydata() for bars in ax.containers])
    assert np.abs(places - [0, 1]).max() < 0.5


def test_exploding_values_do_not_hide_the_others(ax):
    labels = ["normal"] * 99 + ["carcinoma_in_situ"]
    table = pd.DataFrame({"label": labels, "share": [0.5] * 49 + [0.6] * 50 + [900.0]})
    plots.boxes(ax, table, "share", ["normal", "carcinoma_in_situ"])
    assert ax.get_xlim()[1] < 10 and ax.get_xlim()[0] < 0.5
    assert ticks(ax) == ["normal", "carcinoma in situ"]


def test_values_that_are_not_known_are_left_out(ax):
    table = pd.DataFrame({"label": ["a", "a", "a", "a", "b"], "x": [1.0, 2, 3, np.inf, np.nan]})
    plots.boxes(ax, table, "x", ["a", "b"])
    assert np.isfinite(ax.get_xlim()).all() and ax.get_xlim()[1] < 4
    assert any(np.allclose(line.get_xdata(), 2) for line in ax.lines)  # the median
    assert len(ax.get_yticks()) == 2


@pytest.mark.parametrize("n", [0, 3])
def test_without_any_known_value_the_axes_stay_empty(ax, n):
    plots.boxes(ax, pd.DataFrame({"label": ["a"] * n, "x": [np.nan] * n}), "x", ["a", "b"])
    assert ticks(ax) == ["a", "b"] and not ax.lines


def test_sizes_are_drawn_on_a_log_scale_that_holds_all(ax):
    table = pd.DataFrame({"label": ["a"] * 50 + ["b"], "area": [100] * 50 + [1_000_000]})
    plots.boxes(ax, table, "area", ["a", "b"], log=True)
    assert ax.get_xscale() == "log" and ax.get_xlim()[1] >= 1_000_000


def test_reliability_draws_bins_larger_where_more_images_are(ax):
    values = {"confidence": [0.25, 0.9], "accuracy": [0.5, 0.8]}
    plots.reliability(ax, pd.DataFrame({**values, "count": [10, 30]}), "before", "a title")
    (points,) = ax.collections
    assert points.get_offsets().tolist() == [[0.25, 0.5], [0.9, 0.8]]
    assert points.get_sizes()[1] > points.get_sizes()[0]
    line, diagonal = ax.lines
    assert line.get_label() == "before" and (*diagonal.get_xy1(), *diagonal.get_xy2()) == (
        0,
        0,
        1,
        1,
    )
    assert to_hex(points.get_facecolor()[0][:3]) == to_hex(line.get_color())
    labels = ax.get_xlabel(), ax.get_ylabel(), ax.get_title()
    assert labels == ("confidence", "accuracy", "a title")


# Maps on images


def cell() -> np.ndarray:
    mask = np.full((12, 12), 4)
    mask[2:10, 2:10], mask[4:8, 4:8] = 3, 2
    return mask


def outlines(ax) -> list:
    return [drawn for drawn in ax.collections if isinstance(drawn, mpl.contour.ContourSet)]


def test_maps_stay_readable_in_grey_print_and_nothing_is_grey():
    """Luminance rises from the most negative to the most positive value; 0 is grey."""
    colours = mpl.colormaps[plots.DIVERGING](np.linspace(0, 1, 64))[:, :3]
    light = luminance(colours)
    assert (np.diff(light) > 0).all() and light[-1] - light[0] > 0.5
    assert np.ptp(mpl.colormaps[plots.DIVERGING](0.5)[:3]) < 0.05
    assert np.ptp(colours[0]) > 0.2 < np.ptp(colours[-1])


def test_overlays_share_one_scale(ax):
    black = np.zeros((3, 4, 4), dtype=np.uint8)
    plots.overlay(ax, black, np.full((4, 4), 0.5), scale=2.0, title="a title")
    grey, heat = ax.images
    assert grey.get_clim() == (0, 255) and np.asarray(grey.get_array()).shape == (4, 4)
    assert heat.get_clim() == (-2.0, 2.0) and np.allclose(heat.get_alpha(), 0.75 * 0.25)
    assert heat.get_cmap().name == plots.DIVERGING and ax.get_title() == "a title"


def test_an_overlay_hides_what_is_0_and_shows_both_signs_alike_up_to_full_colour(ax):
    heat = np.array([[0.0, -1, 1, 9]])
    plots.overlay(ax, np.zeros((3, 1, 4), dtype=np.uint8), heat, scale=2.0)
    alpha = ax.images[1].get_alpha()
    np.testing.assert_allclose(alpha, [[0, 0.375, 0.375, 0.75]], rtol=0, atol=1e-12)


def test_the_nucleus_has_a_solid_outline_and_the_cell_a_dashed_one(ax):
    plots.mask_outline(ax, np.zeros((3, 12, 12), np.uint8), cell(), "a title")
    nucleus, whole = outlines(ax)
    assert (nucleus.linestyles, whole.linestyles) == ("-", "--") and ax.get_title() == "a title"
    for drawn, (low, high) in ((nucleus, (3.5, 7.5)), (whole, (1.5, 9.5))):
        corners = drawn.get_paths()[0].vertices
        assert (corners.min(), corners.max()) == (low, high)


@pytest.mark.parametrize(
    ("indices", "count"),
    [([4], 0), ([3], 0), ([2], 0), ([0], 0), ([3, 4], 1), ([2, 3], 1), ([2, 3, 4], 2)],
)
def test_what_is_not_in_view_or_fills_it_has_no_outline_and_no_warning(ax, indices, count):
    mask = np.resize(np.repeat(indices, 12), (12, 12))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plots.mask_outline(ax, np.zeros((3, 12, 12), np.uint8), mask)
    assert len(outlines(ax)) == count and len(ax.images) == 1


def test_a_gallery_has_one_scale_for_all_and_outlines_where_there_is_a_mask(grid):
    axes, rng = grid(3, 3), np.random.default_rng(0)
    pictures = rng.integers(0, 256, (3, 3, 12, 12), dtype=np.uint8)
    masks = np.stack([cell(), np.zeros((12, 12), int), np.full((12, 12), 4)])
    maps, titles = rng.normal(size=(3, 12, 12)), ["one", "two\nlines", "three"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plots.gallery(axes, pictures, masks, maps, titles, 1.5)
    assert [ax.get_title() for ax in axes.ravel()] == titles + [""] * 6
    assert [len(outlines(ax)) for ax in axes[0]] == [2, 0, 0]
    assert {ax.images[-1].get_clim() for ax in axes[1:].ravel()} == {(-1.5, 1.5)}
    for column, picture, values in zip(axes.T, pictures, maps):
        np.testing.assert_array_equal(column[0].images[0].get_array(), picture.transpose(1, 2, 0))
        np.testing.assert_array_equal(column[1].images[0].get_array(), values)
        np.testing.assert_array_equal(column[2].images[1].get_array(), values)
    assert not any(ax.axison for ax in axes.ravel())
    (bar,) = [ax for ax in axes[0, 0].figure.axes if ax not in axes.ravel()]
    assert bar.get_ylim() == (-1.5, 1.5)


def test_a_gallery_of_one_image_is_no_accident(grid):
    axes, black = grid(3, 1), np.zeros((1, 3, 12, 12), np.uint8)
    plots.gallery(axes, black, cell()[None], np.ones((1, 12, 12)), ["one"], 1)
    assert [len(ax.images) for ax in axes[:, 0]] == [1, 1, 2]


def test_pictures_fill_the_first_axes_and_leave_the_others_empty(grid):
    axes, images = grid(1, 3), np.random.default_rng(0).integers(0, 256, (2, 3, 4, 4))
    plots.pictures(axes, images.astype(np.uint8), ["one", "two"])
    assert [len(ax.images) for ax in axes[0]] == [1, 1, 0]
    assert [ax.get_title() for ax in axes[0]] == ["one", "two", ""]
    assert not any(ax.axison for ax in axes[0])


# What may be published, and warnings


def test_only_plots_of_images_hold_a_bitmap(grid):
    """An SVG with ``<image`` may not be published: see tools/publish.py."""
    axes = grid(2, 3)
    plots.confusion(axes[0, 0], predictions([0, 1, 2, 3, 4], [0, 1, 2, 3, 4]))
    plots.boxes(axes[0, 1], predictions([0, 1, 2], [0, 1, 2]), "score", ["normal"])
    assert "<image" not in svg(axes[0, 0].figure)
    plots.overlay(axes[0, 2], np.zeros((3, 4, 4), np.uint8), np.ones((4, 4)), 1)
    assert "<image" in svg(axes[0, 0].figure)


@pytest.fixture
def styled():
    """The notebooks' style, undone after the test."""
    with mpl.rc_context(), warnings.catch_warnings():
        warnings.resetwarnings()
        plots.style()
        yield


SAID_ON_IMPORT = """
import warnings
with warnings.catch_warnings(record=True) as said:
    import cervix_utils
    from cervix_utils.explanation import attribution
    from cervix_utils.training import learners
    for category, words in ((UserWarning, "lbfgs failed to converge"), (FutureWarning, "mine")):
        warnings.warn_explicit(words, category, "file.py", 1, "sklearn.linear_model")
print([str(warning.message) for warning in said])
"""


def test_imports_say_nothing_and_other_warnings_are_shown():
    done = subprocess.run([sys.executable, "-c", SAID_ON_IMPORT], capture_output=True, text=True)
    assert done.stdout.strip() == "['lbfgs failed to converge', 'mine']" and not done.stderr


def test_the_same_figure_gives_the_same_svg_with_its_text_as_text(styled, grid):
    drawn = []
    for _ in range(2):
        axes = grid(1, 1)
        plots.confusion(axes[0, 0], predictions([0, 1, 2], [0, 1, 1]), "a title")
        text = io.StringIO()
        axes[0, 0].figure.savefig(text, format="svg", metadata={"Date": None})
        drawn.append(text.getvalue())
    assert drawn[0] == drawn[1] and "a title</text>" in drawn[0]
