"""Figures of explanations are tested on what was drawn, not on pixels."""

import warnings

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from cervix_utils import explanation_plots

mpl.use("agg")
import matplotlib.pyplot as plt


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


def cell() -> np.ndarray:
    mask = np.full((12, 12), 4)
    mask[2:10, 2:10], mask[4:8, 4:8] = 3, 2
    return mask


def outlines(ax) -> list:
    return [drawn for drawn in ax.collections if isinstance(drawn, mpl.contour.ContourSet)]


def test_maps_stay_readable_in_grey_print_and_nothing_is_grey():
    """Relative luminance (sRGB) of the colours rises from the most negative to the most positive value."""
    colours = mpl.colormaps[explanation_plots.DIVERGING](np.linspace(0, 1, 64))[:, :3]
    light = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(light) > 0).all() and light[-1] - light[0] > 0.5
    assert np.ptp(mpl.colormaps[explanation_plots.DIVERGING](0.5)[:3]) < 0.05
    assert np.ptp(colours[0]) > 0.2 < np.ptp(colours[-1])


def test_overlays_share_one_scale(ax):
    explanation_plots.overlay(ax, np.zeros((3, 4, 4), dtype=np.uint8), np.full((4, 4), 0.5), scale=2.0, title="a title")
    grey, heat = ax.images
    assert grey.get_clim() == (0, 255) and np.asarray(grey.get_array()).shape == (4, 4)
    assert heat.get_clim() == (-2.0, 2.0) and np.allclose(heat.get_alpha(), 0.75 * 0.25)
    assert heat.get_cmap().name == explanation_plots.DIVERGING and ax.get_title() == "a title"


def test_an_overlay_hides_what_is_0_and_shows_both_signs_alike_up_to_full_colour(ax):
    explanation_plots.overlay(ax, np.zeros((3, 1, 4), dtype=np.uint8), np.array([[0.0, -1, 1, 9]]), scale=2.0)
    np.testing.assert_allclose(ax.images[1].get_alpha(), [[0, 0.375, 0.375, 0.75]], rtol=0, atol=1e-12)


def test_the_nucleus_has_a_solid_outline_and_the_cell_a_dashed_one(ax):
    explanation_plots.mask_outline(ax, np.zeros((3, 12, 12), np.uint8), cell(), 2, [2, 3], "a title")
    nucleus, whole = outlines(ax)
    assert (nucleus.linestyles, whole.linestyles) == ("-", "--") and ax.get_title() == "a title"
    for drawn, (low, high) in ((nucleus, (3.5, 7.5)), (whole, (1.5, 9.5))):
        corners = drawn.get_paths()[0].vertices
        assert (corners.min(), corners.max()) == (low, high)


@pytest.mark.parametrize(
    ("indices", "count"), [([4], 0), ([3], 0), ([2], 0), ([0], 0), ([3, 4], 1), ([2, 3], 1), ([2, 3, 4], 2)]
)
def test_what_is_not_in_view_or_fills_it_has_no_outline_and_no_warning(ax, indices, count):
    mask = np.resize(np.repeat(indices, 12), (12, 12))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        explanation_plots.mask_outline(ax, np.zeros((3, 12, 12), np.uint8), mask, 2, [2, 3])
    assert len(outlines(ax)) == count and len(ax.images) == 1


def test_a_gallery_has_one_scale_for_all_and_outlines_where_there_is_a_mask(grid):
    axes, rng = grid(3, 3), np.random.default_rng(0)
    pictures = rng.integers(0, 256, (3, 3, 12, 12), dtype=np.uint8)
    maps, masks = rng.normal(size=(3, 12, 12)), np.stack([cell(), np.zeros((12, 12), int), np.full((12, 12), 4)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        explanation_plots.gallery(axes, pictures, masks, maps, ["one", "two\nlines", "three"], 1.5)
    assert [ax.get_title() for ax in axes.ravel()] == ["one", "two\nlines", "three"] + [""] * 6
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
    axes = grid(3, 1)
    explanation_plots.gallery(axes, np.zeros((1, 3, 12, 12), np.uint8), cell()[None], np.ones((1, 12, 12)), ["one"], 1)
    assert [len(ax.images) for ax in axes[:, 0]] == [1, 1, 2]


def test_medians_by_class_are_drawn_with_their_intervals_and_leave_gaps(ax):
    table = pd.DataFrame({"value": [0.3, 0.6], "low": [0.2, 0.5], "high": [0.5, 0.9]}, index=["light_dysplastic", "b"])
    other = table.iloc[:1] * 2
    explanation_plots.medians_by_class(
        ax, {"network": table, "edges": other}, ["b", "light_dysplastic", "c"], "a title"
    )
    assert ax.get_legend_handles_labels()[1] == ["network", "edges"] and ax.get_title() == "a title"
    assert [label.get_text() for label in ax.get_xticklabels()] == ["b", "light dysplastic", "c"]
    first, second = ax.containers
    np.testing.assert_array_equal(first.lines[0].get_ydata().astype(float), [0.6, 0.3, np.nan])
    np.testing.assert_array_equal(second.lines[0].get_ydata().astype(float), [np.nan, 0.6, np.nan])
    ends = [bar[:, 1] for bar in first.lines[2][0].get_segments() if len(bar) and np.isfinite(bar).all()]
    np.testing.assert_allclose(ends, [[0.5, 0.9], [0.2, 0.5]], rtol=0, atol=1e-12)
    assert to_hex(first.lines[0].get_color()) != to_hex(second.lines[0].get_color())
    assert np.abs(first.lines[0].get_xdata() - second.lines[0].get_xdata()).max() < 0.2


def test_the_cascade_goes_down_the_layers_in_both_forms(ax):
    layers = ["fc", "layer4", "conv1"]
    rows = [
        {"layer": layer, "form": form, "value": value, "low": value - 0.1, "high": value + 0.2}
        for k, layer in enumerate(layers)
        for form, value in (("signed", 0.6 - 0.3 * k), ("absolute", 0.7 - 0.2 * k))
    ]
    explanation_plots.cascade(ax, pd.DataFrame(rows))
    signed, absolute, zero = ax.lines
    assert list(signed.get_xdata()) == layers and ax.get_legend_handles_labels()[1] == ["signed", "absolute"]
    np.testing.assert_allclose(signed.get_ydata(), [0.6, 0.3, 0], rtol=0, atol=1e-12)
    np.testing.assert_allclose(absolute.get_ydata(), [0.7, 0.5, 0.3], rtol=0, atol=1e-12)
    assert list(zero.get_ydata()) == [0, 0]
    heights = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == pytest.approx((-0.1, 0.8)) and len(ax.collections) == 2
    assert ax.get_ylim()[0] < -0.1 and ax.get_ylim()[1] > 1


def test_curves_are_means_over_images_and_the_control_is_dashed(ax):
    found = {name: np.random.default_rng(k).random((4, 17)) for k, name in enumerate(["a", "b", "random order"])}
    explanation_plots.curves(ax, found, "deletion")
    assert [line.get_linestyle() for line in ax.lines] == ["-", "-", "--"]
    assert [line.get_label() for line in ax.lines] == list(found) and ax.get_title() == "deletion"
    for line, values in zip(ax.lines, found.values()):
        np.testing.assert_allclose(line.get_ydata(), values.mean(axis=0), rtol=0, atol=1e-12)
        np.testing.assert_allclose(line.get_xdata(), np.arange(17) / 16, rtol=0, atol=1e-12)
    assert len({to_hex(line.get_color()) for line in ax.lines}) == 3
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("share of pixels", "mean severity score")


def test_mean_maps_are_of_the_positive_part_on_one_scale_and_a_class_without_images_is_empty(grid):
    axes, maps = grid(1, 3)[0], np.stack([np.full((4, 4), value) for value in (1.0, -5.0, 4.0)])
    labels = pd.Series(["Type_1", "Type_1", "Type_3"], index=[7, 8, 9])
    explanation_plots.mean_maps(axes, maps, labels, ["Type_1", "Type_2", "Type_3"])
    assert [ax.get_title() for ax in axes] == ["Type 1, mean of 2", "Type 2, mean of 0", "Type 3, mean of 1"]
    assert [len(ax.collections) for ax in axes] == [1, 0, 1]
    assert not any(ax.images for ax in axes)  # a bitmap may not be published
    first, last = (ax.collections[0] for ax in (axes[0], axes[2]))
    filled = [[k for k, path in enumerate(one.get_paths()) if len(path.vertices)] for one in (first, last)]
    assert filled == [[1], [9]]  # 0.5 and 4 on a scale of ten steps up to 4
    assert first.get_clim() == last.get_clim() == (0, 4)
    assert all(len(ax.get_xticks()) == len(ax.get_yticks()) == 0 for ax in axes)


@pytest.mark.parametrize("n", [0, 2])
def test_mean_maps_of_no_evidence_at_all_are_white(grid, n):
    axes = grid(1, 1)[0]
    explanation_plots.mean_maps(axes, np.full((n, 4, 4), -1.0), pd.Series(["Type_1"] * n, dtype=str), ["Type_1"])
    assert [drawn.get_clim() for drawn in axes[0].collections] == [(0, 1)] * (n > 0)


def test_exploding_shares_do_not_hide_the_others(ax):
    table = pd.DataFrame({"label": ["normal"] * 99 + ["carcinoma_in_situ"], "share": [0.5] * 49 + [0.6] * 50 + [900.0]})
    explanation_plots.by_severity(ax, table, "share", ["normal", "carcinoma_in_situ"], "a title", line=1)
    assert ax.get_ylim()[1] < 10 and ax.get_ylim()[0] < 0.5
    assert list(ax.lines[-1].get_ydata()) == [1, 1] and ax.get_title() == "a title"
    assert [label.get_text() for label in ax.get_xticklabels()] == ["normal", "carcinoma in situ"]


def test_shares_that_are_not_known_are_left_out(ax):
    table = pd.DataFrame({"label": ["a", "a", "a", "a", "b"], "share": [1.0, 2, 3, np.inf, np.nan]})
    explanation_plots.by_severity(ax, table, "share", ["a", "b"])
    assert np.isfinite(ax.get_ylim()).all() and ax.get_ylim()[1] < 4
    assert any(np.allclose(line.get_ydata(), 2) for line in ax.lines)  # the median
    assert len(ax.get_xticks()) == 2


@pytest.mark.parametrize("n", [0, 3])
def test_without_any_known_share_the_axes_stay_empty(ax, n):
    table = pd.DataFrame({"label": ["a"] * n, "share": [np.nan] * n})
    explanation_plots.by_severity(ax, table, "share", ["a", "b"], "a title", line=1)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["a", "b"] and len(ax.lines) == 1


@pytest.mark.parametrize("side", [4, 64, 70])
def test_mean_maps_are_drawn_as_means_of_at_most_32_squares_a_side(monkeypatch, grid, side):
    axes, drawn = grid(1, 1)[0], []
    monkeypatch.setattr(type(axes[0]), "contourf", lambda self, values, **_: drawn.append(values))
    maps = np.random.default_rng(0).random((3, side, side))
    explanation_plots.mean_maps(axes, maps, pd.Series(["Type_1"] * 3), ["Type_1"])
    step, mean = -(-side // 32), maps.mean(axis=0)
    places = range(0, side, step)
    slow = [[mean[y : y + step, x : x + step].mean() for x in places] for y in places]
    np.testing.assert_allclose(drawn[0], slow, rtol=1e-12)
    assert len(drawn[0]) <= 32
