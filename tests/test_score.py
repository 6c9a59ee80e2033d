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
        ("id,p_Type_1,p_Type_2,p_Type_3\na,1,0,0\na,1,0,0\n", "image a stands twice"),
        ("id,p_Type_1,p_Type_2,p_Type_3\na,1,0,0\n", "no image is one of the published test parts"),
    ],
)
def test_what_cannot_be_measured_is_one_clear_line(tmp_path, text, why):
    (tmp_path / "mine.csv").write_text(text)
    with pytest.raises(SystemExit, match=why):
        score.main(str(tmp_path / "mine.csv"))
    with pytest.raises(SystemExit, match="there is no file"):
        score.main(str(tmp_path / "none.csv"))
