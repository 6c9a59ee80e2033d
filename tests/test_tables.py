"""The table of predictions: made, checked, read back as it was written."""

import numpy as np
import pandas as pd
import pytest

from cervix_utils.data import datasets, tables


def rows(task: str = "herlev", n: int = 6) -> pd.DataFrame:
    classes = datasets.get(task).classes
    table = pd.DataFrame(
        {"id": [f"a/{k}" for k in range(n)], "group": [f"00{k}" for k in range(n)]}
    )
    table["part"] = (tables.PARTS * n)[:n]
    table["label"] = (list(classes) * n)[:n]
    return table


def drawn(task: str = "herlev", n: int = 6) -> pd.DataFrame:
    """A table of random predictions."""
    classes = datasets.get(task).classes
    p = np.random.default_rng(0).dirichlet(np.ones(len(classes)), n)
    return tables.as_predictions(rows(task, n), p, task)


def test_columns_of_graded_and_other_tasks():
    names = ["normal", "light_dysplastic", "moderate_dysplastic", "severe_dysplastic"]
    probabilities = [f"p_{name}" for name in [*names, "carcinoma_in_situ"]]
    assert tables.columns("herlev") == ["id", "group", "part", "label", *probabilities, "score"]
    assert tables.columns("colposcopy")[4:] == ["p_Type_1", "p_Type_2", "p_Type_3"]
    with pytest.raises(datasets.DataError, match="unknown data set 'lungs'"):
        tables.columns("lungs")


@pytest.mark.parametrize("task", ["herlev", "colposcopy"])
def test_probabilities_stand_under_their_classes_and_give_the_expected_grade(task):
    names = datasets.get(task).classes
    table = tables.as_predictions(rows(task), np.eye(len(names))[[0, 1, 2, 2, 1, 0]], task)
    assert list(table.columns) == tables.columns(task)
    assert [table.loc[k, f"p_{names[k]}"] for k in range(3)] == [1, 1, 1]
    assert table.filter(like="p_").sum(axis=1).eq(1).all()
    if task == "herlev":
        assert table["score"].tolist() == [1, 2, 3, 3, 2, 1]


def test_the_score_is_the_expected_grade():
    table = drawn()
    p = table.filter(like="p_").to_numpy()
    slow = [sum((k + 1) * value for k, value in enumerate(row)) for row in p]
    np.testing.assert_allclose(table["score"], slow, rtol=1e-12)


def test_scores_leave_the_probabilities_empty():
    table = tables.as_predictions(rows(), np.arange(6.0)[:, None], "herlev")
    assert table["score"].tolist() == [0, 1, 2, 3, 4, 5]
    assert table.filter(like="p_").isna().all(axis=None) and table.shape == (6, 10)
    tables.check(table, "herlev")


def test_rows_in_any_order_keep_their_values():
    shuffled = rows().sample(frac=1, random_state=1)
    table = tables.as_predictions(shuffled, np.arange(6.0)[:, None], "herlev")
    assert table["id"].tolist() == shuffled["id"].tolist()
    assert table["score"].tolist() == [0, 1, 2, 3, 4, 5] and table.index.tolist() == [*range(6)]


@pytest.mark.parametrize("task", ["herlev", "colposcopy"])
def test_a_good_table_is_given_back(task):
    table = drawn(task)
    assert tables.check(table, task) is table


def put(column: str, value, row: int = 2):
    return lambda table: table.assign(**{column: table[column].mask(table.index == row, value)})


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda table: table.drop(columns="p_normal"), "column 'p_normal' is missing"),
        (lambda table: table.drop(columns="score"), "column 'score' is missing"),
        (lambda table: table.drop(columns="group"), "column 'group' is missing"),
        (lambda table: table[:0], "there are no rows"),
        (put("part", "tset"), "part 'tset' is unknown, known are train, valid, test"),
        (put("label", "Type_1"), "label 'Type_1' is unknown, known are normal"),
        (put("p_normal", np.nan), "probabilities are missing"),
        (put("p_normal", 5.0), "outside 0..1"),
        (put("p_normal", -0.1), "outside 0..1"),
        (put("p_normal", np.inf), "outside 0..1"),
        (put("p_normal", 0.999), "do not sum to 1"),
        (put("score", np.nan), "a score is missing"),
        (put("score", np.inf), "a score is missing"),
    ],
)
def test_what_cannot_be_is_refused_with_the_file_and_a_remedy(spoil, words):
    with pytest.raises(tables.PredictionsError, match=words) as error:
        tables.check(spoil(drawn()), "herlev", "a/predictions.csv")
    assert str(error.value).startswith("a/predictions.csv: ") and "again" in str(error.value)


def test_a_row_without_any_probability_is_refused_among_others_that_have_them():
    table = drawn()
    names = [name for name in table if name.startswith("p_")]
    table.loc[2, names] = np.nan
    with pytest.raises(tables.PredictionsError, match="probabilities are missing"):
        tables.check(table, "herlev")


def test_only_grades_can_do_without_probabilities():
    names = tables.columns("colposcopy")[4:]
    with pytest.raises(tables.PredictionsError, match="probabilities are missing"):
        tables.check(drawn("colposcopy").assign(**dict.fromkeys(names, np.nan)), "colposcopy")


def test_all_problems_are_named_at_once():
    table = put("part", "tset")(put("p_normal", 5.0)(drawn()))
    with pytest.raises(tables.PredictionsError, match=r"part 'tset'.*outside 0\.\.1"):
        tables.check(table, "herlev")


@pytest.mark.parametrize("name", ["NA", "None", "nan", "null", "007", "1e5", "True"])
def test_names_stay_text(tmp_path, name):
    table = drawn().assign(group=name)
    table.to_csv(tmp_path / "x.csv", index=False)
    pd.testing.assert_frame_equal(tables.read(tmp_path / "x.csv"), table)


def test_empty_probabilities_are_read_as_missing(tmp_path):
    table = tables.as_predictions(rows(), np.arange(6.0)[:, None], "herlev")
    table.to_csv(tmp_path / "x.csv", index=False)
    pd.testing.assert_frame_equal(tables.read(tmp_path / "x.csv"), table, check_dtype=False)


@pytest.mark.parametrize(
    "content", [b"", b"id,p_a\nx,high\n", b"\xff\xfe\x00\x81", b'id,p_a\n"x,1\n']
)
def test_a_file_that_is_no_table_is_named(tmp_path, content):
    (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(tables.PredictionsError, match=r"x\.csv is no table of numbers"):
        tables.read(tmp_path / "x.csv")
