"""References: the contract's table, kept in one step, read back beside runs, and said in a sentence."""

import numpy as np
import pandas as pd
import pytest

from cervix_utils import metrics, paths, references
from cervix_utils.datasets import CLASSES


def rows(task: str = "herlev", n: int = 30) -> pd.DataFrame:
    names = CLASSES[task]
    found = pd.DataFrame({"id": [f"i{k}" for k in range(n)], "group": [f"{k:03d}" for k in range(n)]})
    return found.assign(part=["train", "valid", "test"] * (n // 3), label=[names[k % len(names)] for k in range(n)])


def drawn(task: str = "herlev", n: int = 30, seed: int = 0) -> pd.DataFrame:
    values = np.random.default_rng(seed).dirichlet(np.ones(len(CLASSES[task])), n)
    return references.as_predictions(rows(task, n), values, task)


def test_probabilities_become_the_contracts_table():
    table = references.as_predictions(rows(n=6), np.eye(5)[[0, 1, 2, 3, 4, 0]], "herlev")
    metrics.check_predictions(table, "herlev")
    assert table["score"].tolist() == [1, 2, 3, 4, 5, 1]
    half = references.as_predictions(rows(n=3), np.tile([0.5, 0, 0, 0, 0.5], (3, 1)), "herlev")
    assert half["score"].tolist() == [3, 3, 3]
    assert "score" not in references.as_predictions(rows("colposcopy", 3), np.eye(3), "colposcopy")


def test_a_single_output_is_a_score_without_probabilities():
    table = references.as_predictions(rows(n=3), np.array([[1.5], [2.0], [9.0]]), "herlev")
    assert table["score"].tolist() == [1.5, 2.0, 9.0] and not metrics.has_probabilities(table)


def test_rows_keep_their_order_whatever_their_index():
    shuffled = rows(n=6).iloc[[4, 0, 2, 5, 1, 3]]
    table = references.as_predictions(shuffled, np.eye(5)[[0, 1, 2, 3, 4, 0]], "herlev")
    assert table["id"].tolist() == ["i4", "i0", "i2", "i5", "i1", "i3"] and not table.isna().any(axis=None)


@pytest.mark.parametrize("task", CLASSES)
def test_only_test_rows_are_kept_and_read_back(tmp_path, task):
    predictions = drawn(task)
    run = references.write(tmp_path, task, "baseline_all_forest", "train_only", 2, predictions)
    assert paths.reference_file(tmp_path, task, "baseline_all_forest", "train_only", 2).is_file()
    assert run.recipe == {"task": task, "pipeline": "baseline_all_forest", "protocol": "train_only", "fold": 2}
    expected = predictions[predictions["part"] == "test"].reset_index(drop=True)
    pd.testing.assert_frame_equal(run.test, expected, rtol=0, atol=0.6e-5)
    assert len(run.predictions) == len(run.test) == 10
    assert run.test["group"].tolist() == expected["group"].tolist()  # 002 stays text
    assert [path.name for path in run.folder.parent.iterdir()] == ["train_only-2.csv"]


def test_scores_without_probabilities_survive_the_file(tmp_path):
    predictions = references.as_predictions(rows(n=3), np.array([[1.5], [2.0], [3.25]]), "herlev")
    run = references.write(tmp_path, "herlev", "regression_without_cell", "paper", 0, predictions)
    assert run.test["score"].tolist() == [3.25] and not metrics.has_probabilities(run.test)


def test_what_breaks_the_contract_is_not_kept(tmp_path):
    with pytest.raises(ValueError, match="predictions have columns"):
        references.write(tmp_path, "herlev", "x", "paper", 0, drawn().drop(columns="score"))
    with pytest.raises(ValueError, match="x: the predictions hold no test image"):
        references.write(tmp_path, "herlev", "x", "paper", 0, drawn().query("part != 'test'"))
    assert not list(tmp_path.rglob("*.csv"))


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    references.write(tmp_path, "herlev", "x", "paper", 0, drawn(seed=1))
    before = paths.reference_file(tmp_path, "herlev", "x", "paper", 0).read_text()
    monkeypatch.setattr(pd.DataFrame, "to_csv", lambda *_, **__: (_ for _ in ()).throw(OSError("no room")))
    with pytest.raises(OSError, match="no room"):
        references.write(tmp_path, "herlev", "x", "paper", 0, drawn(seed=2))
    assert [path.read_text() for path in tmp_path.rglob("*") if path.is_file()] == [before]


def test_all_references_are_found_in_order_and_measured_with_runs(tmp_path):
    for name, protocol, fold in [("b", "paper", 1), ("b", "paper", 0), ("a", "grouped", 0)]:
        references.write(tmp_path, "herlev", name, protocol, fold, drawn(seed=fold))
    (tmp_path / "references/herlev/b/.paper-2.csv.part.csv").write_text("half a file")
    found = list(references.all_references(tmp_path, "herlev"))
    assert [run.name for run in found] == ["herlev a grouped-0", "herlev b paper-0", "herlev b paper-1"]
    assert list(references.all_references(tmp_path, "colposcopy")) == []
    results = metrics.results(found, n_boot=50)
    assert set(results["n_test"]) == {10, 20} and set(results["pipeline"]) == {"a", "b"}  # 20: two folds together
    value = results.query("pipeline == 'b' and fold == '1' and metric == 'mse'")["value"].item()
    assert value == pytest.approx(metrics.measure(drawn(seed=1).query("part == 'test'"), "herlev")["mse"][0], abs=1e-4)


def results(accuracies: dict[str, float], log_loss: bool = True) -> pd.DataFrame:
    table = [
        {"pipeline": k, "metric": "accuracy", "value": v, "low": v - 0.1, "high": v + 0.1}
        for k, v in accuracies.items()
    ]
    table += [{"pipeline": k, "metric": "log_loss", "value": 1.0, "low": 0, "high": 2} for k in list(accuracies)[1:]]
    return pd.DataFrame(table if log_loss else table[: len(accuracies)])


def test_beside_sorts_by_accuracy_and_leaves_gaps_open():
    table = references.beside(results({"regression": 0.5, "baseline_a_forest": 0.25, "combined": 0.75}))
    assert list(table.columns) == ["accuracy", "low", "high", "log_loss"]
    assert list(table.index) == ["combined", "regression", "baseline_a_forest"]
    assert table.loc["regression", ["accuracy", "low", "high"]].tolist() == pytest.approx([0.5, 0.4, 0.6])
    assert table["log_loss"].isna().tolist() == [False, True, False]


def test_beside_refuses_several_folds():
    once = results({"a": 0.5})
    with pytest.raises(ValueError, match="give those of one fold"):
        references.beside(pd.concat([once, once]))


def test_the_sentence_names_the_best_baseline_and_sorts_the_networks():
    shown = {"x": 0.5, "y": 0.8, "baseline_priors": 0.3, "baseline_all_forest": 0.6, "z": 0.6}
    sentence = references.best_baseline(references.beside(results(shown)))
    assert "best of 2 baselines by accuracy is **all_forest**: 0.600 (95 % interval 0.500 to 0.700)" in sentence
    above, below = sentence.split("Networks above it: ")[1].split("; not above it: ")
    assert above == "y (0.800, 0.700 to 0.900)"
    assert "x (0.500" in below and "z (0.600" in below  # equal is not above
    alone = references.best_baseline(references.beside(results({"baseline_priors": 0.3, "x": 0.1})))
    assert "Networks above it: none; not above it: x" in alone
