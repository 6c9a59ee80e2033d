"""Plots are tested on what was drawn, not on pixels."""

import matplotlib as mpl
import numpy as np
import pandas as pd

from cervix_utils import plots

mpl.use("agg")


def test_confusion_prints_counts_and_shares_of_the_row(ax):
    plots.confusion(ax, np.array([[3, 1], [0, 2]]), ["normal", "light_dysplastic"])
    assert [text.get_text() for text in ax.texts] == ["3\n75%", "1\n25%", "0\n0%", "2\n100%"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["normal", "light dysplastic"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("predicted", "reference standard")


def test_losses_mark_the_epoch_that_is_kept(ax):
    history = pd.DataFrame({"epoch": [1, 2, 3], "train_loss": [3.0, 2, 1], "valid_loss": [3.0, 1, 2]})
    plots.losses(ax, history, kept=2)
    assert [list(line.get_ydata()) for line in ax.lines[:2]] == [[3, 2, 1], [3, 1, 2]]
    assert list(ax.lines[2].get_xdata()) == [2, 2]


def test_intervals_are_drawn_where_they_are(ax):
    table = pd.DataFrame({"value": [0.5, 0.8], "low": [0.4, 0.7], "high": [0.7, 0.9]})
    plots.with_intervals(ax, table, ["a", "b"], "C0", offset=0.1)
    (bars,) = [c for c in ax.collections if hasattr(c, "get_segments")]
    assert np.allclose([s[:, 0] for s in bars.get_segments()], [[0.4, 0.7], [0.7, 0.9]])
    assert np.allclose([s[:, 1] for s in bars.get_segments()], [[0.1, 0.1], [1.1, 1.1]])


def test_published_values_keep_their_lines_when_a_protocol_lacks_some(ax):
    beside = pd.DataFrame(
        [("a", "accuracy", 0.7, "paper", 0.6, 0.5, 0.7), ("b", "accuracy", 0.9, "grouped", 0.8, 0.7, 0.9)],
        columns=["pipeline", "metric", "published", "protocol", "value", "low", "high"],
    )
    plots.against_published(ax, beside)
    (diamonds,) = [line for line in ax.lines if line.get_marker() == "D"]
    assert list(diamonds.get_xdata()) == [0.7, 0.9] and list(diamonds.get_ydata()) == [0, 1]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a: accuracy", "b: accuracy"]
