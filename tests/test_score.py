"""Anyone's predictions on the published splits have the numbers that ours have for the same."""

import pandas as pd
import pytest
from test_publish import PUBLISHED, published

from cervix_utils.evaluation import metrics
from tools import score

pytestmark = published


@pytest.fixture(scope="module")
def cells() -> pd.DataFrame:
    """Published test rows of the cells by two pipelines, the grouped protocol."""
    frame = metrics.read_file(PUBLISHED / "herlev.csv.xz")
    asked = "part == 'test' and protocol == 'grouped' and pipeline in ('combined', 'regression')"
    return frame.query(asked).reset_index(drop=True)


def write(cells: pd.DataFrame, file, drop=()):
    columns = ["id", "protocol", "fold", *(name for name in cells if name.startswith("p_"))]
    rows = cells.query("pipeline == 'combined'")[columns].drop(columns=list(drop))
    rows.to_csv(file, index=False)
    return file


@pytest.mark.parametrize("drop", [(), ("fold",), ("protocol", "fold")])
def test_our_own_predictions_have_our_own_numbers(cells, tmp_path, drop):
    task, mine = score.read(write(cells, tmp_path / "mine.csv", drop))
    table = score.score(score.on_published(task, mine, cells), cells, 50)
    kept = pd.read_csv(PUBLISHED / "results.csv", dtype={"fold": str})
    kept = kept.query("task == 'herlev' and protocol == 'grouped' and fold == 'mean'")
    kept = kept.query("pipeline == 'combined'").set_index("metric")
    for metric in ("accuracy", "mse"):
        row = table.loc["grouped split", metrics.label_of(metric)]
        assert row["yours"].split()[0] == f"{kept.at[metric, 'value']:.3f}"
        assert row["minus classification + regression"].replace("-", "") == "0.000 (0.000 to 0.000)"
    accuracy = table.loc["grouped split", "accuracy"]["minus regression"]
    assert accuracy.startswith("0.083 (")  # 0.631 - 0.548, published


def test_columns_may_stand_in_any_order_and_an_image_stands_once(cells, tmp_path):
    rows = pd.read_csv(write(cells, tmp_path / "mine.csv"))
    rows[rows.columns[::-1]].to_csv(tmp_path / "turned.csv", index=False)
    one, other = (
        score.on_published(*score.read(tmp_path / name), cells)
        for name in ("mine.csv", "turned.csv")
    )
    pd.testing.assert_frame_equal(one, other)
    pd.concat([rows, rows[:1]]).to_csv(tmp_path / "twice.csv", index=False)
    with pytest.raises(ValueError, match=f"image '{rows['id'][0]}' stands twice"):
        score.on_published(*score.read(tmp_path / "twice.csv"), cells)


def test_scores_alone_are_those_of_a_regression(cells, tmp_path):
    rows = cells.query("pipeline == 'regression'")[["id", "protocol", "fold", "score"]]
    rows.to_csv(tmp_path / "mine.csv", index=False)
    mine = score.on_published(*score.read(tmp_path / "mine.csv"), cells)
    assert mine.filter(like="p_").isna().all(axis=None) and set(mine["score"]) == set(rows["score"])


def test_missing_and_unknown_images_are_named(cells, tmp_path, capsys):
    file = write(cells, tmp_path / "mine.csv")
    rows = pd.read_csv(file)
    gone = rows["id"].iloc[0]
    rows.loc[0, "id"] = "a cell of mine"
    rows.to_csv(file, index=False)
    score.on_published(*score.read(file), cells)
    said = capsys.readouterr().out
    assert (
        f"1 images are missing: {gone}" in said and "1 images are unknown: a cell of mine" in said
    )


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("name,p_normal\na,1\n", "column 'id' is missing"),
        ("id,p_other\na,1\n", r"give the columns id and p_<class>, of one of: p_normal, p_light"),
        ("id,p_Type_1,p_Type_2,p_Type_3\na,1,0,0\n", "no image is one of the published test parts"),
    ],
)
def test_what_cannot_be_measured_is_one_clear_line(tmp_path, text, why):
    (tmp_path / "mine.csv").write_text(text)
    with pytest.raises(SystemExit, match=why):
        score.main(str(tmp_path / "mine.csv"))
    with pytest.raises(SystemExit, match="there is no file"):
        score.main(str(tmp_path / "none.csv"))
