"""Baselines: features that are known exactly, twins of masks and shapes, and fits that never see a test label."""

from pathlib import Path

import naive
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.ensemble import RandomForestClassifier

from cervix_utils import baselines, datasets, metrics, paths, splits
from cervix_utils.datasets import CLASSES


@pytest.fixture(autouse=True)
def light(tmp_path, monkeypatch):
    """A cache of its own, and forests that a test can afford."""
    monkeypatch.setenv("CERVIX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(baselines, "TREES", 40)


@pytest.fixture
def cell(tmp_path, write_mask):
    """Function: a drawn cell, one flat colour for each mask index, as (path, mask)."""

    def draw(indices: np.ndarray, name: str = "cell") -> tuple[str, str]:
        colours = np.array([(9, 9, 9), (8, 8, 8), (40, 20, 90), (120, 140, 160), (200, 190, 210)], dtype=np.uint8)
        Image.fromarray(colours[indices]).save(file := tmp_path / f"{name}.BMP")
        return str(file), str(write_mask(tmp_path / f"{name}-d.bmp", indices=indices))

    return draw


def square_cell() -> np.ndarray:
    """12 x 10: cytoplasm 8 x 6 with a nucleus of 4 x 2 in it, and one stray pixel of nucleus."""
    indices = np.full((10, 12), 4)
    indices[2:8, 2:10], indices[4:6, 4:8], indices[2, 2], indices[0, 0], indices[0, 1] = 3, 2, 2, 0, 1
    return indices


def test_features_of_a_flat_cell_are_known_exactly(cell):
    found = baselines.of_cell(*cell(square_cell()))
    expected = {"size_width": 12, "size_height": 10, "background_red": 200, "background_green": 190}
    expected |= {"masks_0": 1, "masks_1": 1, "masks_2": 9, "masks_3": 39, "masks_4": 70, "area_ratio": 9 / 39}
    for name, colour in (("nucleus", (40, 20, 90)), ("cytoplasm", (120, 140, 160))):
        expected |= {f"{name}_mean_{k}": value for k, value in enumerate(colour)}
        expected |= {f"{name}_std_{k}": 0 for k in range(3)}
    expected |= {"nucleus_area": 8, "nucleus_solidity": 1, "nucleus_extent": 1, "nucleus_perimeter": 8}  # no stray
    expected |= {"nucleus_eccentricity": np.sqrt(1 - (2**2 - 1) / (4**2 - 1))}  # variance of 1..n: (n^2 - 1) / 12
    expected |= {"cell_area": 48, "cell_extent": 1, "cell_axis_major_length": 4 * np.sqrt((8**2 - 1) / 12)}
    for key, value in expected.items():
        assert found[key] == pytest.approx(value), key


def test_mask_counts_and_colours_equal_a_loop_over_pixels(cell, tmp_path):
    rng = np.random.default_rng(3)
    path, mask = cell(rng.integers(0, 5, (13, 9)))
    noise = rng.integers(0, 256, (13, 9, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
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
    assert small["a_area"] == disc.sum() and small["a_extent"] == pytest.approx(np.pi / 4, rel=0.1)
    assert all(np.isnan(value) for value in baselines._shape("a", np.zeros((4, 4), bool)).values())


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
    assert known == {"size_width", "size_height", "background_red", "background_green", "background_blue"}


def test_features_of_a_flat_photograph_are_known_exactly(tmp_path):
    Image.new("RGB", (30, 20), (255, 0, 0)).save(file := tmp_path / "flat.png")
    found = baselines.of_photograph(str(file))
    assert (found["size_width"], found["size_height"], found["background_red"]) == (30, 20, 255)
    for place in ("rgb", "middle", "border"):
        assert [found[f"{place}_mean_{k}"] for k in range(3)] == [255, 0, 0]
    assert [found[f"hsv_q50_{k}"] for k in range(3)] == [128, 255, 255]  # red lies in the middle of the hues
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


@pytest.mark.parametrize("task", CLASSES)
def test_one_row_an_image_and_a_prefix_a_set(tiny_demo, task):
    table = datasets.load(str(tiny_demo), task)[0]
    known = baselines.features(table, task)
    assert list(known.index) == list(table["id"]) and set(known.dtypes) == {np.dtype("float64")}
    assert known["size_width"].tolist() == table["width"].tolist()
    for name in baselines.SETS[task]:
        assert name == "all" or any(column.startswith(f"{name}_") for column in known)


def test_pictures_are_read_once_until_image_mask_or_code_changes(cells, monkeypatch):
    read = []
    describe = baselines.of_cell
    monkeypatch.setattr(baselines, "of_cell", lambda path, mask: read.append(path) or describe(path, mask))
    first = baselines.features(cells, "herlev")
    pd.testing.assert_frame_equal(baselines.features(cells, "herlev"), first)
    assert len(read) == len(cells)
    assert [path.suffix for path in paths.cache_dir().glob("features-*")] == [".parquet"]
    baselines.features(cells.assign(mask=["", *cells["mask"][1:]]), "herlev")
    assert len(read) == 2 * len(cells)
    baselines.features(cells.assign(sha256=["other", *cells["sha256"][1:]]), "herlev")
    assert len(read) == 3 * len(cells)
    monkeypatch.setattr(Path, "read_text", lambda *_: "other code")
    baselines.features(cells, "herlev")
    assert len(read) == 4 * len(cells)


# The classifiers


def made_up(task: str = "herlev", n: int = 100, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(split, features): ``size_width`` alone tells the class, other columns are noise."""
    rng, names = np.random.default_rng(seed), CLASSES[task]
    label = np.arange(n) % len(names)
    split = pd.DataFrame({"id": [f"i{k}" for k in range(n)], "group": [f"g{k}" for k in range(n)]})
    split["part"] = rng.permutation(np.repeat(["train", "valid", "test"], [n // 2, n // 5, n - n // 2 - n // 5]))
    split["label"] = [names[k] for k in label]
    columns = {"size_width": 10.0 * label + rng.uniform(0, 1, n), "background_red": rng.normal(size=n)}
    return split, pd.DataFrame(columns, index=split["id"]).sample(frac=1, random_state=seed)


@pytest.mark.parametrize("model", baselines.MODELS)
@pytest.mark.parametrize("task", CLASSES)
def test_a_label_that_is_a_function_of_a_feature_is_found(task, model):
    split, known = made_up(task)
    found = {name: baselines.predict(split, known, task, name, model, 0) for name in ("size", "background", "all")}
    tested = {name: metrics.measure(p[p["part"] == "test"], task)["accuracy"][0] for name, p in found.items()}
    assert tested["size"] == tested["all"] == 1 and tested["background"] < 0.7
    metrics.check_predictions(found["size"], task)
    assert found["size"][["id", "group", "part", "label"]].equals(split)


def test_priors_answer_the_class_shares_of_train_and_valid():
    split, known = made_up()
    found = baselines.predict(split, known, "herlev", "size", "priors", 0)
    shares = split[split["part"] != "test"]["label"].value_counts(normalize=True)[CLASSES["herlev"]]
    assert np.allclose(found.filter(like="p_"), shares)
    assert np.allclose(found["score"], shares @ np.arange(1, 6))


@pytest.mark.parametrize("model", [*baselines.MODELS, "priors"])
def test_labels_of_the_test_part_change_nothing_but_their_column(model):
    split, known = made_up()
    test, other = split["part"] == "test", split.copy()
    other.loc[test, "label"] = np.roll(split.loc[test, "label"], 1)
    before, after = (baselines.predict(table, known, "herlev", "all", model, 0) for table in (split, other))
    assert not before["label"].equals(after["label"])
    pd.testing.assert_frame_equal(before.drop(columns="label"), after.drop(columns="label"))


def test_features_of_the_test_part_do_not_influence_each_other():
    split, known = made_up()
    test = split.loc[split["part"] == "test", "id"]
    known.loc[test[1:], "size_width"] = np.nan
    moved = known.copy()
    moved.loc[test[1:], "size_width"] = 1e9
    for model in baselines.MODELS:
        before, after = (baselines.predict(split, x, "herlev", "size", model, 0) for x in (known, moved))
        same = ~split["id"].isin(test[1:])
        pd.testing.assert_frame_equal(before[same], after[same])


def test_the_forest_is_scikit_learns():
    split, known = made_up()
    x, train = known.loc[split["id"]].to_numpy(), (split["part"] != "test").to_numpy()
    forest = RandomForestClassifier(40, min_samples_leaf=2, random_state=7).fit(x[train], split["label"][train])
    found = baselines.predict(split, known, "herlev", "all", "forest", 7)
    np.testing.assert_allclose(found[[f"p_{name}" for name in forest.classes_]], forest.predict_proba(x), atol=1e-12)


def test_the_seed_decides_the_forest():
    split, known = made_up()
    one, same, other = (baselines.predict(split, known, "herlev", "background", "forest", seed) for seed in (0, 0, 1))
    assert one.equals(same) and not one.equals(other)


@pytest.mark.parametrize("model", [*baselines.MODELS, "priors"])
def test_a_class_that_training_lacks_has_probability_zero(model):
    split, known = made_up()
    split.loc[split["label"] == "severe_dysplastic", "part"] = "test"
    found = baselines.predict(split, known, "herlev", "all", model, 0)
    metrics.check_predictions(found, "herlev")
    assert (found["p_severe_dysplastic"] == 0).all() and (found["p_normal"] > 0).any()


@pytest.mark.parametrize("model", baselines.MODELS)
def test_unknown_features_are_imputed_even_where_all_are_unknown(model):
    split, known = made_up()
    known.iloc[::7, 0] = np.nan
    found = baselines.predict(split, known.assign(masks_2=np.nan), "herlev", "all", model, 0)
    metrics.check_predictions(found, "herlev")
    metrics.check_predictions(
        baselines.predict(split, known.assign(masks_2=np.nan), "herlev", "masks", model, 0), "herlev"
    )


def test_unknown_names_are_refused():
    split, known = made_up()
    with pytest.raises(
        ValueError, match="unknown feature set 'shape' of herlev: known are size, background, masks, all"
    ):
        baselines.predict(split, known, "herlev", "shape", "forest", 0)
    with pytest.raises(ValueError, match="unknown baseline model 'tree'"):
        baselines.predict(split, known, "herlev", "size", "tree", 0)


def test_every_baseline_has_its_name_and_the_contracts_form(cells):
    split = splits.assign_parts(cells, "herlev", "paper", 0, 2, 0.3, 0)
    found = baselines.all_of(split, "herlev", 0)
    assert list(found)[:3] == ["baseline_priors", "baseline_size_forest", "baseline_size_logistic"]
    assert list(found)[-1] == "baseline_all_logistic" and len(found) == 9
    for table in found.values():
        metrics.check_predictions(table, "herlev")
        assert table["id"].tolist() == split["id"].tolist()
