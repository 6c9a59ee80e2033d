"""What is drawn, not pixels: points of a reliability diagram, steps of a risk-coverage curve."""

import matplotlib as mpl
import numpy as np
import pandas as pd

from cervix_utils import evaluation_plots

mpl.use("agg")


def test_reliability_draws_filled_bins_larger_where_more_images_are(ax):
    table = pd.DataFrame({"confidence": [0.25, np.nan, 0.9], "accuracy": [0.5, np.nan, 0.8], "count": [10, 0, 30]})
    evaluation_plots.reliability(ax, table, "before", "C0", "a title")
    (points,) = ax.collections
    assert points.get_offsets().tolist() == [[0.25, 0.5], [0.9, 0.8]]
    assert points.get_sizes()[1] > points.get_sizes()[0]
    diagonal, line = ax.lines
    assert list(diagonal.get_xdata()) == list(diagonal.get_ydata()) and line.get_label() == "before"
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_title()) == ("confidence", "accuracy", "a title")


def test_every_risk_coverage_curve_is_in_view(ax):
    for error in (0.1, 0.9):
        evaluation_plots.risk_coverage(ax, pd.DataFrame({"coverage": [0.5, 1], "error": [0, error]}), str(error), "C0")
    low, high = ax.get_ylim()
    assert all(low <= line.get_ydata().min() and line.get_ydata().max() <= high for line in ax.lines)
    assert [line.get_label() for line in ax.lines] == ["0.1", "0.9"] and ax.lines[0].get_drawstyle() == "steps-pre"
