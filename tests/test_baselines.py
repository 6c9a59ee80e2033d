"""Baselines: features that are known exactly, fits that never see a test label, averages."""

import warnings

import naive
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.ensemble import RandomForestClassifier
from test_metrics import drawn

from cervix_utils import paths
from cervix_utils.data import datasets, splits
from cervix_utils.evaluation import baselines, metrics

TASKS = ["herlev", "colposcopy"]


@pytest.fixture(autouse=True)
def light(tmp_path, monkeypatch):
    """A cache of its own, and forests that a test can afford."""
    monkeypatch.setenv("CERVIX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(baselines, "TREES", 40)


@pytest.fixture
def cell(tmp_path, write_mask):
    """Function: a drawn cell, one flat colour for each mask index, as (path, mask)."""
    colours = [(9, 9, 9), (8, 8, 8), (40, 20, 90), (120, 140, 160), (200, 190, 210)]

    def draw(indices: np.ndarray, name: str = "cell") -> tuple[str, str]:
        pixels = np.array(colours, dtype=np.uint8)[indices]
        Image.fromarray(pixels).save(file := tmp_path / f"{name}.BMP")
        return str(file), str(write_mask(tmp_path / f"{name}-d.bmp", indices=indices))

    return draw


def square_cell() -> np.ndarray:
    """12 x 10: cytoplasm 8 x 6 with a nucleus of 4 x 2 in it, and one stray pixel of nucleus."""
    indices = np.full((10, 12), 4)
    indices[2:8, 2:10], indices[4:6, 4:8], indices[2, 2] = 3, 2, 2
    indices[0, 0], indices[0, 1] = 0, 1
    return indices


def test_features_of_a_flat_cell_are_known_exactly(cell):
    found = baselines.of_cell(*cell(square_cell()))
    expected = {"size_width": 12, "size_height": 10, "background_red": 200}
    expected |= {f"masks_{k}": count for k, count in enumerate((1, 1, 9, 39, 70))}
    expected |= {"background_green": 190, "area_ratio": 9 / 39}
    for name, colour in (("nucleus", (40, 20, 90)), ("cytoplasm", (120, 140, 160))):
        expected |= {f"{name}_mean_{k}": value for k, value in enumerate(colour)}
        expected |= {f"{name}_std_{k}": 0 for k in range(3)}
    expected |= {"nucleus_area": 8, "nucleus_solidity": 1, "nucleus_extent": 1}  # no stray pixel
    expected |= {"nucleus_perimeter": 8, "cell_area": 48, "cell_extent": 1}
    variance = {n: (n**2 - 1) / 12 for n in (2, 4, 8)}  # of 1..n
    expected["nucleus_eccentricity"] = np.sqrt(1 - variance[2] / variance[4])
    expected["cell_axis_major_length"] = 4 * np.sqrt(variance[8])
    for key, value in expected.items():
        assert found[key] == pytest.approx(value), key


def test_mask_counts_and_colours_equal_a_loop_over_pixels(cell):
    rng = np.random.default_rng(3)
    path, mask = cell(rng.integers(0, 5, (13, 9)))
    Image.fromarray(rng.integers(0, 256, (13, 9, 3), dtype=np.uint8)).save(path)
    slow, found = naive.mask_features(path, mask), baselines.of_cell(path, mask)
    assert len(slow) == 5 + 12
    for key, value in slow.items():
        assert found[key] == pytest.approx(value, abs=1e-9), key


def test_shapes_grow_with_the_region_and_know_a_line_from_a_disc():
    y, x = np.mgrid[:41, :41] - 20
    disc, line = y**2 + x**2 <= 100, (abs(y) <= 1) & (abs(x) <= 15)
    small, long = baselines._shape("a", disc), baselines._shape("a", line)
    assert small["a_eccentricity"] == pytest.approx(0) and long["a_eccentricity"] > 0.99
    assert small["a_axis_major_length"] == pytest.approx(20, rel=0.03)
    assert small["a_area"] == disc.sum()
    assert small["a_extent"] == pytest.approx(np.pi / 4, rel=0.1)
    nothing = baselines._shape("a", np.zeros((4, 4), bool))
    assert all(np.isnan(value) for value in nothing.values())


@pytest.mark.parametrize("gone", [2, 3])
def test_a_region_that_is_not_there_is_unknown_not_zero(cell, gone):
    indices = square_cell()
    indices[indices == gone] = 4
    found = baselines.of_cell(*cell(indices))
    name = {2: "nucleus", 3: "cytoplasm"}[gone]
    assert np.isnan(found[f"{name}_mean_0"]) and found[f"masks_{gone}"] == 0
    assert found["area_ratio"] == 0 if gone == 2 else np.isnan(found["area_ratio"])


def test_a_cell_without_mask_has_the_same_columns_and_no_mask_features(cell):
    path, mask = cell(square_cell())
    whole, bare = baselines.of_cell(path, mask), baselines.of_cell(path, "")
    assert list(whole) == list(bare)
    known = {key for key, value in bare.items() if not np.isnan(value)}
    colours = {f"background_{name}" for name in ("red", "green", "blue")}
    assert known == {"size_width", "size_height"} | colours


def test_features_of_a_flat_photograph_are_known_exactly(tmp_path):
    Image.new("RGB", (30, 20), (255, 0, 0)).save(file := tmp_path / "flat.png")
    found = baselines.of_photograph(str(file))
    size = (found["size_width"], found["size_height"], found["background_red"])
    assert size == (30, 20, 255)
    for place in ("rgb", "middle", "border"):
        assert [found[f"{place}_mean_{k}"] for k in range(3)] == [255, 0, 0]
    assert [found[f"hsv_q50_{k}"] for k in range(3)] == [128, 255, 255]  # red: the middle hue
    assert found["pattern_8"] == 28 * 18 / 600 and found["gradient_mean"] == 0
    assert sum(found[f"pattern_{k}"] for k in range(10)) == pytest.approx(1)
    assert all(value == 0 for key, value in found.items() if "_std" in key)


def test_middle_and_border_of_a_photograph_are_told_apart(tmp_path):
    pixels = np.zeros((40, 40, 3), np.uint8)
    pixels[10:30, 10:30] = 200
    Image.fromarray(pixels).save(file := tmp_path / "middle.png")
    found = baselines.of_photograph(str(file))
    assert found["middle_mean_0"] == 200 and found["border_mean_0"] == 0
    assert found["rgb_mean_0"] == 50 and found["gradient_mean"] > 0


# The table and its cache


@pytest.fixture
def cells(tiny_demo):
    return splits.with_groups(datasets.load(str(tiny_demo), "herlev")[0], 2)


@pytest.mark.parametrize("task", TASKS)
def test_one_row_an_image_and_a_prefix_a_set(tiny_demo, task):
    table = datasets.load(str(tiny_demo), task)[0]
    known = baselines.features(table)
    assert list(known.index) == list(table["id"]) and set(known.dtypes) == {np.dtype("float64")}
    assert known["size_width"].tolist() == table["width"].tolist()
    sets = {column.partition("_")[0] for column in known} & set(baselines.SETS)
    assert sets == {"size", "background"} | ({"masks"} if task == "herlev" else set())


def test_cells_without_any_mask_are_described_as_photographs(cells):
    known = baselines.features(cells.assign(mask=""))
    assert "pattern_0" in known and not known.isna().any(axis=None)


def test_pictures_are_read_once_until_image_mask_or_version_changes(cells, monkeypatch):
    read = []
    describe = baselines.of_cell

    def counting(path, mask):
        read.append(path)
        return describe(path, mask)

    monkeypatch.setattr(baselines, "of_cell", counting)
    first = baselines.features(cells)
    pd.testing.assert_frame_equal(baselines.features(cells), first)
    assert len(read) == len(cells)
    assert len([path for path in paths.cache_dir().glob("features-*") if path.is_dir()]) == 1
    masked = cells.index[cells["mask"] != ""]
    baselines.features(cells.assign(mask=cells["mask"].mask(cells.index == masked[0], "")))
    assert len(read) == 2 * len(cells)
    baselines.features(cells.assign(sha256=["other", *cells["sha256"][1:]]))
    assert len(read) == 3 * len(cells)
    monkeypatch.setattr(baselines, "FEATURES_VERSION", 0)
    baselines.features(cells)
    assert len(read) == 4 * len(cells)


# The classifiers


def made_up(task: str = "herlev", n: int = 100, seed: int = 0) -> tuple[pd.DataFrame, ...]:
    """(split, features): ``size_width`` alone tells the class, other columns are noise."""
    rng, names = np.random.default_rng(seed), datasets.get(task).classes
    label = np.arange(n) % len(names)
    split = pd.DataFrame({"id": [f"i{k}" for k in range(n)], "group": [f"g{k}" for k in range(n)]})
    sizes = [n // 2, n // 5, n - n // 2 - n // 5]
    split["part"] = rng.permutation(np.repeat(["train", "valid", "test"], sizes))
    split["label"] = [names[k] for k in label]
    width, red = 10.0 * label + rng.uniform(0, 1, n), rng.normal(size=n)
    known = pd.DataFrame({"size_width": width, "background_red": red}, index=split["id"])
    split = split.assign(task=task, protocol="grouped", fold=2)
    return split, known.sample(frac=1, random_state=seed)


@pytest.mark.parametrize("model", baselines.MODELS)
@pytest.mark.parametrize("task", TASKS)
def test_a_label_that_is_a_function_of_a_feature_is_found(task, model):
    split, known = made_up(task)
    sets = ("size", "background", "all")
    found = {name: baselines.predict(split, known, name, model, 0) for name in sets}
    tested = {name: metrics.measure(p)["accuracy"][0] for name, p in found.items()}
    assert tested["size"] == tested["all"] == 1 and tested["background"] < 0.7
    table, test = found["size"], split[split["part"] == "test"].reset_index(drop=True)
    metrics.check_predictions(table)
    columns = ["id", "group", "part", "label", "task", "protocol", "fold"]
    assert table[columns].equals(test[columns])
    assert set(table["pipeline"]) == {f"baseline_size_{model}"} and set(table["run"]) == {""}


def test_priors_answer_the_class_shares_of_train_and_valid():
    split, known = made_up()
    found = baselines.predict(split, known, "size", "priors", 0)
    fitted = split.loc[split["part"] != "test", "label"]
    shares = fitted.value_counts(normalize=True)[list(datasets.get("herlev").classes)]
    assert np.allclose(metrics.probabilities(found), shares)
    assert np.allclose(found["score"], shares @ np.arange(1, 6))


@pytest.mark.parametrize("model", [*baselines.MODELS, "priors"])
def test_labels_of_the_test_part_change_nothing_but_their_column(model):
    split, known = made_up()
    test, other = split["part"] == "test", split.copy()
    other.loc[test, "label"] = np.roll(split.loc[test, "label"], 1)
    tables = [baselines.predict(table, known, "all", model, 0) for table in (split, other)]
    before, after = (table.drop(columns="label") for table in tables)
    assert not tables[0]["label"].equals(tables[1]["label"])
    pd.testing.assert_frame_equal(before, after)


@pytest.mark.parametrize("model", baselines.MODELS)
def test_features_of_the_test_part_do_not_influence_each_other(model):
    split, known = made_up()
    test = split.loc[split["part"] == "test", "id"]
    known.loc[test[1:], "size_width"] = np.nan
    moved = known.copy()
    moved.loc[test[1:], "size_width"] = 1e9
    before, after = (baselines.predict(split, x, "size", model, 0) for x in (known, moved))
    pd.testing.assert_frame_equal(before[:1], after[:1])


def test_the_forest_is_scikit_learns_and_the_seed_decides_it():
    split, known = made_up()
    x, train = known.loc[split["id"]].to_numpy(), (split["part"] != "test").to_numpy()
    forest = RandomForestClassifier(40, min_samples_leaf=2, random_state=7)
    forest.fit(x[train], split["label"][train])
    found, same, other = (baselines.predict(split, known, "all", "forest", k) for k in (7, 7, 1))
    p = found[[f"p_{name}" for name in forest.classes_]]
    np.testing.assert_allclose(p, forest.predict_proba(x[~train]), atol=1e-12)
    assert found.equals(same) and not found.equals(other)


@pytest.mark.parametrize("model", [*baselines.MODELS, "priors"])
def test_a_class_that_training_lacks_has_probability_zero(model):
    split, known = made_up()
    split.loc[split["label"] == "severe_dysplastic", "part"] = "test"
    found = metrics.check_predictions(baselines.predict(split, known, "all", model, 0))
    assert (found["p_severe_dysplastic"] == 0).all() and (found["p_normal"] > 0).any()


@pytest.mark.parametrize("model", baselines.MODELS)
def test_unknown_features_are_imputed_even_where_all_are_unknown(model):
    split, known = made_up()
    known.iloc[::7, 0] = np.nan
    known = known.assign(masks_2=np.nan)
    for name in ("all", "masks"):
        metrics.check_predictions(baselines.predict(split, known, name, model, 0))


def test_unknown_names_are_refused():
    split, known = made_up()
    with pytest.raises(ValueError, match="no features 'shape' of these images: sets are size, bac"):
        baselines.predict(split, known, "shape", "forest", 0)
    with pytest.raises(KeyError, match="tree"):
        baselines.predict(split, known, "size", "tree", 0)


@pytest.mark.parametrize(("task", "number"), [("herlev", 9), ("colposcopy", 7)])
def test_every_baseline_predicts_the_test_part_without_a_warning(tiny_demo, task, number):
    table = splits.with_groups(datasets.load(str(tiny_demo), task)[0], 2)
    split = splits.assign_parts(table, task, "paper", 0, 2, 0.3, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a classifier that does not converge, for one
        found = metrics.check_predictions(baselines.all_of(split, 0))
    names = list(found["pipeline"].unique())
    assert names[:2] == ["baseline_priors", "baseline_size_forest"] and len(names) == number
    assert names[-1] == "baseline_all_logistic" in baselines.AVERAGES["average_with_baseline"]
    for _, rows in found.groupby("pipeline"):
        assert rows["id"].tolist() == split.loc[split["part"] == "test", "id"].tolist()


def test_a_classifier_that_does_not_converge_says_so(monkeypatch):
    """The notebooks silence no warning of this kind: a reader must learn of it."""
    split, known = made_up()
    made = baselines.classifier("logistic", 0).set_params(logisticregression__max_iter=1)
    monkeypatch.setattr(baselines, "classifier", lambda *_: made)
    with pytest.warns(UserWarning, match="failed to converge"):
        baselines.predict(split, known, "all", "logistic", 0)


# Averages


def test_an_average_is_the_mean_probability_of_the_same_images_in_any_order():
    first, second = drawn("plain", 0), drawn("plain", 1).assign(pipeline="other")
    both = pd.concat([first, second.sample(frac=1, random_state=0)])
    found = metrics.check_predictions(baselines.average(both, "average_of_networks"))
    p = (metrics.probabilities(first) + metrics.probabilities(second)) / 2
    np.testing.assert_allclose(metrics.probabilities(found), p)
    np.testing.assert_allclose(found["score"], (first["score"] + second["score"]) / 2)
    assert found[["id", "group", "label"]].equals(first[["id", "group", "label"]])
    assert set(found["pipeline"]) == {"average_of_networks"}
    for other in (drawn("regression", 1).assign(pipeline="other"), second.iloc[1:]):
        with pytest.raises(ValueError, match="same images"):
            baselines.average(pd.concat([first, other]), "x")


def test_averages_are_made_where_all_their_members_are():
    names = ["classification", "combined", "baseline_all_logistic"]
    one, two, three = (drawn("plain", seed).assign(pipeline=n) for seed, n in enumerate(names))
    networks = pd.concat([one, two, two.assign(protocol="grouped"), one.assign(part="train")])
    found = baselines.averages(networks)
    assert set(found["pipeline"]) == {"average_of_networks"} and set(found["part"]) == {"test"}
    assert set(found["protocol"]) == {"paper"} and len(found) == 60
    found = baselines.averages(pd.concat([networks, three]))
    assert list(found["pipeline"].unique()) == ["average_of_networks", "average_with_baseline"]
    p = sum(metrics.probabilities(table) for table in (one, two, three)) / 3
    np.testing.assert_allclose(metrics.probabilities(found[60:]), p)
    assert baselines.averages(drawn("colposcopy", 0)).empty


def test_names_become_words():
    assert baselines.label_of("baseline_all_logistic") == "logistic regression on all features"
    assert baselines.label_of("baseline_size_forest") == "random forest on image size"
    assert baselines.label_of("baseline_priors") == "class shares alone"
    assert baselines.label_of("average_of_networks") == "average of networks"
    assert baselines.label_of("combined_whole") == "combined_whole"  # a network: words.label has it
