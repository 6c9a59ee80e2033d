"""Explanations of a network: which images, maps made once and read again, the table of them."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from cervix_utils import paths
from cervix_utils.data import datasets, images
from cervix_utils.evaluation import metrics
from cervix_utils.explanation import attribution, controls, maps, regions
from cervix_utils.training import losses, networks, runs

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = list(datasets.get("herlev").classes)
METHODS = [("integrated_gradients", "white"), ("occlusion", "background"), ("grad_cam", "")]


@pytest.fixture(scope="module")
def cells(tiny_demo) -> pd.DataFrame:
    return datasets.load(str(tiny_demo), "herlev", 0)[0]


@pytest.fixture
def run_of(small_run):
    """Function: a run of random answers; every third cell trained it, the others tested it."""

    def make(cells: pd.DataFrame, **changes) -> runs.Run:
        table = cells[["id", "label"]].assign(group=cells["name_group"], part="test")
        table = table.reset_index(drop=True)
        table.loc[::3, "part"] = "train"
        p = np.random.default_rng(0).dirichlet(np.ones(5), len(table))
        table[[f"p_{name}" for name in NAMES]] = p
        table["score"] = p @ np.arange(1, 6)
        return small_run(table, **{"image_size": 32} | changes)

    return make


# Which images


@pytest.mark.parametrize("window", [0, 40])
def test_test_images_are_chosen_with_pictures_and_masks(cells, run_of, window):
    run = run_of(cells, window=window)
    chosen = maps.choose(run, cells, 10, 0)
    assert chosen.table["id"].isin(run.test["id"]).all() and chosen.table["id"].is_unique
    assert chosen.table["label"].value_counts().to_dict() == dict.fromkeys(NAMES, 2)
    assert chosen.table["severity"].tolist() == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert {"path", "mask", "score", *maps.ABOUT} <= set(chosen.table)
    squares = images.squares(chosen.table["path"], 32, window)
    np.testing.assert_array_equal(chosen.pictures, squares)
    masks = images.square_masks(chosen.table["mask"], 32, window)
    np.testing.assert_array_equal(chosen.masks, masks)


def test_one_seed_gives_one_choice_and_another_seed_another(cells, run_of):
    run = run_of(cells)
    choices = [maps.choose(run, cells, 10, seed).table["id"].tolist() for seed in (3, 3, 0, 1, 2)]
    assert choices[0] == choices[1]
    assert len(set(map(tuple, choices))) == 4


@pytest.mark.parametrize("n", [1, 3, 5, 7, 13])
def test_no_more_are_chosen_than_asked_for_and_classes_differ_by_one_at_most(cells, run_of, n):
    chosen = maps.choose(run_of(cells), cells, n, 0)
    assert len(chosen.table) == len(chosen.pictures) == len(chosen.masks) == n
    counts = chosen.table["label"].value_counts().reindex(NAMES, fill_value=0)
    assert counts.max() - counts.min() <= 1


def test_all_test_images_are_chosen_where_more_are_asked_for(cells, run_of):
    run = run_of(cells)
    masked = set(cells.loc[cells["mask"] != "", "id"])
    assert set(maps.choose(run, cells, 1000, 0).table["id"]) == set(run.test["id"]) & masked
    with pytest.raises(
        attribution.AttributionError, match=r"none is asked for: give .* 1 or more as"
    ):
        maps.choose(run, cells, 0, 0)


def test_images_with_a_mask_go_first(cells, run_of):
    run, some = run_of(cells), cells.copy()
    has_mask = some.index[some["id"].isin(run.test["id"]) & (some["mask"] != "")][::2]
    some.loc[~some.index.isin(has_mask), "mask"] = ""
    chosen = maps.choose(run, some, 1000, 0)
    assert set(chosen.table["id"]) == set(some.loc[has_mask, "id"])
    assert (chosen.masks == images.NUCLEUS).any(axis=(1, 2)).all()


def test_a_run_on_other_data_is_refused_by_its_name(cells, run_of):
    words = "herlev combined paper-0: none of its test images is in this data.*give the data it saw"
    other = cells.assign(id=cells["id"] + "x")
    with pytest.raises(attribution.AttributionError, match=words):
        maps.choose(run_of(cells), other, 5, 0)


def test_what_a_network_named_is_its_most_probable_class_or_its_rounded_score(cells, run_of):
    run = run_of(cells)
    named = maps.choose(run, cells, 1000, 0).table.set_index("id")["predicted"]
    expected = pd.Series(np.array(NAMES)[metrics.predicted_class(run.test)], index=run.test["id"])
    assert named.to_dict() == expected[named.index].to_dict() and named.nunique() == 5
    scores = np.resize([-3, 1.4, 1.6, 2.5, 3.2, 4.4, 9], len(run.predictions))
    empty = dict.fromkeys([f"p_{name}" for name in NAMES], np.nan)
    run = replace(run, predictions=run.predictions.assign(score=scores, **empty))
    named = maps.choose(run, cells, 1000, 0).table.set_index("id")["predicted"]
    severities = {-3: 1, 1.4: 1, 1.6: 2, 2.5: 2, 3.2: 3, 4.4: 4, 9: 5}
    score = run.test.set_index("id")["score"]
    assert named.tolist() == [NAMES[severities[score[image]] - 1] for image in named.index]


def test_the_first_images_are_the_first_of_each_class(few_cells):
    three = few_cells.first(3)
    assert three.table["id"].tolist() == ["i0", "i2", "i4"]
    assert three.table.index.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(three.pictures, few_cells.pictures[::2])
    np.testing.assert_array_equal(three.masks, few_cells.masks[::2])
    assert three.pixels.shape == (3, 3, 16, 16)
    assert few_cells.first(4).table["id"].tolist() == ["i0", "i1", "i2", "i4"]
    assert few_cells.first(60).table.equals(few_cells.table)


def test_half_of_a_sample_of_one_image_is_that_image(few_cells):
    assert few_cells.first(1).table["id"].tolist() == ["i0"]
    assert few_cells.first(1 // 2).table["id"].tolist() == ["i0"]  # crashed notebook 4


@pytest.mark.parametrize("kind", attribution.BASELINES)
def test_baselines_are_made_of_the_images_own_pictures_and_masks(few_cells, kind):
    pixels = torch.from_numpy(few_cells.pictures).float() / 255
    assert torch.equal(few_cells.pixels, pixels)
    slow = attribution.baseline(kind, pixels, few_cells.masks)
    assert torch.equal(few_cells.baseline(kind), slow)


# Images that were named rightly: photographs


@pytest.fixture(scope="module")
def photographs(tiny_demo) -> pd.DataFrame:
    table = datasets.load(str(tiny_demo), "colposcopy", 0)[0]
    return table[table["label"] != ""].reset_index(drop=True)


@pytest.fixture
def type_run(small_run, photographs) -> runs.Run:
    """All are test photographs; it names all rightly but the first of each type."""
    types = list(datasets.get("colposcopy").classes)
    named = pd.Categorical(photographs["label"], types).codes.astype(int)
    first = ~photographs["label"].duplicated()
    named = np.where(first, (named + 1) % 3, named)
    predictions = photographs[["id", "label"]].assign(group="g", part="test")
    predictions[[f"p_{name}" for name in types]] = 0.1 + 0.7 * np.eye(3)[named]
    changes = {"task": "colposcopy", "pipeline": "modern", "architecture": "resnet18"}
    return small_run(predictions, head="paper", image_size=32, **changes)


def test_as_many_rightly_named_images_of_each_class_are_chosen(type_run, photographs):
    chosen = maps.choose(type_run, photographs, 6, 0, right=True)
    first = photographs.groupby("label")["id"].head(1)  # named wrongly
    assert not chosen.table["id"].isin(first).any()
    assert chosen.table["label"].is_monotonic_increasing
    assert chosen.table["label"].value_counts().tolist() == [2, 2, 2]
    assert chosen.table["label"].tolist() == chosen.table["predicted"].tolist()
    files = photographs.set_index("id").loc[chosen.table["id"], "path"]
    np.testing.assert_array_equal(chosen.pictures, images.squares(files, 32))
    assert (chosen.masks == 0).all() and chosen.masks.shape == (6, 32, 32)
    many = maps.choose(type_run, photographs, 1000, 0, right=True).table["label"].value_counts()
    assert many.to_dict() == (photographs["label"].value_counts() - 1).to_dict()


def test_maps_of_classes_that_are_no_grades_are_those_of_the_class_that_is_named(
    type_run, photographs
):
    chosen = maps.choose(type_run, photographs, 3, 0, right=True)
    torch.manual_seed(0)
    model = networks.network("resnet18", "paper", 3).eval()
    explain = maps.Explainer(type_run)
    network = attribution.FromPixels(model, [0.5] * 3, [0.25] * 3)
    target = torch.arange(3)
    blurred = attribution.baseline("blurred", chosen.pixels)
    slow = {
        "grad_cam": attribution.grad_cam(network, chosen.pixels, target),
        "occlusion": attribution.occlusion(network, chosen.pixels, blurred, target),
    }
    items = {name: explain(model, chosen, name, "blurred" * (name == "occlusion")) for name in slow}
    for name, item in items.items():
        np.testing.assert_allclose(item.maps, slow[name], rtol=0, atol=1e-6)
        outputs = network(chosen.pixels)[target, target]
        np.testing.assert_allclose(item.table["score"], outputs, rtol=0, atol=1e-5)
    table = maps.table(items.values())
    shares = table.groupby("title", sort=False)["middle"].agg(["count", "mean", "min", "max"])
    assert shares.index.tolist() == ["grad cam", "occlusion, blurred"]
    assert (shares["count"] <= 3).all() and shares["mean"].between(0, 1).all()
    with pytest.raises(
        attribution.AttributionError, match="'integrated_gradients' explains a named"
    ):
        explain(model, chosen, "integrated_gradients", "blurred")


def test_a_run_that_names_none_rightly_is_refused(type_run, photographs):
    wrong = type_run.predictions.groupby("label").head(1)
    with pytest.raises(
        attribution.AttributionError, match="none of its test images that it named rightly is"
    ):
        maps.choose(replace(type_run, predictions=wrong), photographs, 3, 0, right=True)


# Maps, made once


@pytest.fixture
def explain(small_run, tmp_path, monkeypatch) -> maps.Explainer:
    """An Explainer with an empty cache."""
    monkeypatch.setenv("CERVIX_CACHE", str(tmp_path / "cache"))
    return maps.Explainer(small_run(), steps=4)


def kept() -> list:
    return sorted(paths.cache_dir().glob("maps-*/maps.npz"))


def same(item: maps.Explained, other: maps.Explained) -> None:
    np.testing.assert_array_equal(item.maps, other.maps)
    assert item.maps.dtype == other.maps.dtype
    pd.testing.assert_frame_equal(item.table, other.table)


@pytest.mark.parametrize("outputs", [1, 4, 5])
def test_maps_are_those_of_the_severity_score(explain, few_cells, small_network, outputs):
    model, pixels = small_network(outputs), few_cells.pixels
    network = attribution.FromPixels(model, [0.5] * 3, [0.25] * 3, 5)
    white, ground = few_cells.baseline("white"), few_cells.baseline("background")
    slow = {
        "integrated_gradients": attribution.integrated_gradients(network, pixels, white, 4).maps,
        "occlusion": attribution.occlusion(network, pixels, ground),
        "grad_cam": attribution.grad_cam(network, pixels),
    }
    for method, baseline in METHODS:
        item = explain(model, few_cells, method, baseline)
        np.testing.assert_array_equal(item.maps, slow[method])
        assert item.maps.dtype == np.float32 and item.maps.shape == (6, 16, 16)
        assert np.ptp(item.maps) > 0 and item.masks is few_cells.masks
        pd.testing.assert_frame_equal(item.table[maps.ABOUT], few_cells.table[maps.ABOUT])
        about = item.table[["network", "method", "baseline"]].drop_duplicates().to_numpy().tolist()
        assert about == [["trained", method, baseline]]
        expected = losses.score(model((pixels - 0.5) / 0.25)).detach()
        np.testing.assert_allclose(item.table["score"], expected, rtol=0, atol=1e-6)
        assert item.table["start_score"].isna().all() == (baseline == "")
        unknown = item.table[["delta", "steps"]].isna()
        assert (
            unknown.all(axis=None)
            == unknown.any(axis=None)
            == (method not in slow or method[:3] != "int")
        )


def test_deltas_are_what_the_maps_and_the_scores_leave_open(explain, few_cells, small_network):
    item = explain(small_network(), few_cells, "integrated_gradients", "white")
    change = item.table["score"] - item.table["start_score"]
    expected = item.maps.sum(axis=(1, 2)) - change
    np.testing.assert_allclose(item.table["delta"], expected, rtol=0, atol=1e-5)
    assert item.table["steps"].tolist() == [4] * 6 and change.abs().min() > 1e-3


def test_the_bound_reaches_the_integration(explain, few_cells, small_network):
    model = small_network()
    item = replace(explain, bound=1e-3)(model, few_cells, "integrated_gradients", "white")
    assert item.table["delta"].abs().max() <= 1e-3 and item.table["steps"].max() > 4


@pytest.mark.parametrize(("method", "baseline"), METHODS)
def test_a_kept_map_is_read_again_and_needs_no_pickle(
    explain, few_cells, small_network, monkeypatch, method, baseline
):
    first = explain(small_network(), few_cells, method, baseline)
    (file,) = kept()
    with np.load(file, allow_pickle=False) as found:
        assert {"maps", "delta", "steps", "score"} <= set(found.files)
    monkeypatch.setattr(maps.Explainer, "make", lambda *_: pytest.fail("made again"))
    same(explain(small_network(), few_cells, method, baseline), first)
    assert kept() == [file]


def test_another_network_has_its_own_maps_though_the_settings_are_the_same(
    explain, few_cells, small_network
):
    items = [explain(small_network(seed=seed), few_cells, "grad_cam") for seed in (0, 1)]
    assert len(kept()) == 2
    assert np.abs(items[0].maps - items[1].maps).max() > 1e-3  # the first map again, before


def test_other_images_of_the_same_names_have_their_own_maps(explain, few_cells, small_network):
    changed = replace(few_cells, pictures=255 - few_cells.pictures)
    items = [explain(small_network(), chosen, "grad_cam") for chosen in (few_cells, changed)]
    assert np.abs(items[0].maps - items[1].maps).max() > 1e-3


def test_whatever_decides_a_map_makes_it_anew(explain, few_cells, small_network, monkeypatch):
    model, calls = small_network(), [(explain, few_cells, "white")]
    changes = {"steps": 5, "bound": 0.5}
    calls += [
        (replace(explain, **{name: value}), few_cells, "white") for name, value in changes.items()
    ]
    other_run = replace(explain.run, recipe=explain.run.recipe | {"mean": (0.4,) * 3})
    masks = np.where(few_cells.masks == 4, 3, 4).astype(np.uint8)
    calls += [
        (replace(explain, run=other_run), few_cells, "white"),
        (explain, few_cells.first(3), "white"),
        (explain, few_cells, "blurred"),
        (explain, few_cells, "background"),
        (explain, replace(few_cells, masks=masks), "background"),
    ]
    for count, (maker, chosen, baseline) in enumerate(calls, 1):
        maker(model, chosen, "integrated_gradients", baseline)
        assert len(kept()) == count
    explain(model, few_cells, "integrated_gradients", "white", "another name")
    assert len(kept()) == len(calls)
    monkeypatch.setattr(maps, "version", lambda package: f"{package} of tomorrow")
    explain(model, few_cells, "integrated_gradients", "white")
    monkeypatch.setattr(maps, "MAPS_VERSION", 99)
    explain(model, few_cells, "integrated_gradients", "white")
    assert len(kept()) == len(calls) + 2


def test_a_map_that_cannot_be_written_leaves_nothing_behind(
    explain, few_cells, small_network, monkeypatch
):
    def full(file, **_):
        file.write_bytes(b"half")
        raise OSError("no room")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="no room"):
        patch.setattr(np, "savez_compressed", full)
        explain(small_network(), few_cells, "grad_cam")
    assert kept() == []
    explain(small_network(), few_cells, "grad_cam")
    assert len(kept()) == 1


def test_an_unknown_method_or_baseline_is_refused_and_nothing_is_kept(
    explain, few_cells, small_network
):
    with pytest.raises(attribution.AttributionError, match="no method 'lime' explains a severity"):
        explain(small_network(), few_cells, "lime")
    with pytest.raises(attribution.AttributionError, match="unknown baseline 'black'"):
        explain(small_network(), few_cells, "integrated_gradients", "black")
    assert kept() == []


@pytest.mark.parametrize("target", [None, torch.arange(70) % 2])
def test_many_images_are_answered_in_parts_and_stay_in_order(target):
    seen = []

    def mean(x: torch.Tensor) -> torch.Tensor:
        seen.append(len(x))
        value = x.mean(dim=(1, 2, 3))
        return value if target is None else torch.stack([value, -value], dim=1)

    pixels = torch.arange(70.0).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    expected = np.arange(70.0) if target is None else np.arange(70) * (1.0 - 2 * target.numpy())
    np.testing.assert_array_equal(attribution.answers(mean, pixels, target), expected)
    assert seen == [32, 32, 6]


# What is made of them


def made(chosen: maps.Images, seed: int = 0, baseline: str = "white", **about) -> maps.Explained:
    """Random maps of ``chosen``, complete but for random deltas."""
    rng, n = np.random.default_rng(seed), len(chosen.table)
    values, deltas = rng.normal(0.1, 1, (n, *chosen.masks.shape[1:])), rng.normal(0, 0.01, n)
    score = np.random.default_rng(99).uniform(1, 5, n)
    start = score + deltas - values.sum(axis=(1, 2))
    about = {"network": "trained", "method": "integrated_gradients"} | about
    numbers = {
        "score": score,
        "start_score": start,
        "delta": deltas,
        "steps": rng.choice([16, 32], n),
    }
    return maps.Explained.of(chosen, values, baseline=baseline, **about, **numbers)


@pytest.mark.parametrize(
    ("changes", "title"),
    [
        ({}, "integrated gradients, white"),
        ({"method": "grad_cam", "baseline": ""}, "grad cam"),
        ({"network": "random weights"}, "integrated gradients, white, random weights"),
        ({"network": "edges", "method": "null map", "baseline": ""}, "null map, edges"),
    ],
)
def test_titles_tell_method_baseline_and_any_network_but_the_trained(few_cells, changes, title):
    item = made(few_cells, **changes)
    assert item.title == title and (item.table["title"] == title).all()


def test_a_part_of_the_explained_images_comes_in_the_order_asked_for(few_cells):
    whole, rows = made(few_cells), [4, 0, 3]
    table = few_cells.table.iloc[rows].reset_index(drop=True)
    pictures, masks = few_cells.pictures[rows], few_cells.masks[rows]
    part = whole.on(replace(few_cells, table=table, pictures=pictures, masks=masks))
    assert part.table["id"].tolist() == ["i4", "i0", "i3"] and part.title == whole.title
    np.testing.assert_array_equal(part.masks, masks)
    np.testing.assert_array_equal(part.maps, whole.maps[rows])
    pd.testing.assert_frame_equal(part.table, whole.table.iloc[rows].reset_index(drop=True))
    same(whole.on(few_cells), whole)


def test_an_image_that_is_not_explained_is_named(few_cells):
    with pytest.raises(KeyError, match="i1"):
        made(few_cells.first(3)).on(few_cells)


def test_the_table_has_a_row_an_image_network_method_and_baseline_once_in_the_order_given(
    few_cells,
):
    white, blurred = made(few_cells), made(few_cells.first(3), 1, "blurred")
    blind = made(few_cells, 3, network="random weights")
    table = maps.table(
        [blind, white, blurred, white.on(few_cells.first(2)), *controls.null(few_cells)]
    )
    about = [*maps.ABOUT, "network", "method", "baseline", "title", *maps.NUMBERS]
    assert list(table)[:14] == about and table.index.tolist() == list(range(6 + 6 + 3 + 18))
    assert set(table) == {*about, *regions.shares(white.maps, white.masks)}
    networks_ = ["random weights", "trained", "uniform", "darkness", "edges"]
    assert table["network"].unique().tolist() == networks_
    for item in (blind, white, blurred):
        rows = table[table["title"] == item.title].reset_index(drop=True)
        pd.testing.assert_frame_equal(rows[about], item.table, check_dtype=False)
        shares = regions.shares(item.maps, item.masks)
        pd.testing.assert_frame_equal(rows[list(shares)], shares)


# Extremes: one image, one class, no mask at all


@pytest.mark.parametrize("case", ["one image", "one class", "no masks", "all"])
def test_every_table_can_be_made_of_few_images_or_without_masks(
    explain, few_cells, small_network, case
):
    chosen = {"one image": few_cells.first(1), "one class": few_cells.first(4)}.get(case, few_cells)
    if case == "one class":
        rows = [0, 1]
        table, pictures = few_cells.table.iloc[rows], few_cells.pictures[rows]
        chosen = replace(few_cells, table=table, pictures=pictures, masks=few_cells.masks[rows])
    if case == "no masks":
        chosen = replace(chosen, masks=0 * chosen.masks)
    model = small_network()
    items = [explain(model, chosen, method, baseline) for method, baseline in METHODS]
    blind = explain(controls.randomised(model), chosen, METHODS[0][0], "white", "random weights")
    table = maps.table([*items, *controls.null(chosen), blind])
    assert len(table) == len(chosen.table) * 7
    maps_of_networks = table[
        table["baseline"].isin(["", "white"]) & ~table["method"].str.contains("cam")
    ]
    for column in ("signed_at_nucleus", "signed_log_ratio", "absolute_per_area_nucleus"):
        medians = regions.medians(maps_of_networks, column, n_boot=20)
        assert len(medians) == 5 * chosen.table["label"].nunique()
        trends = regions.trends(maps_of_networks, column, n_boot=20)
        rises = regions.rises(maps_of_networks, column, n_boot=20)
        if case != "all":
            assert trends["value"].isna().all() and rises["value"].isna().all()
            assert regions.verdict(rises).startswith("**No verdict**")
    means = regions.means(table, ["positive_at_nucleus", "area_nucleus", "middle"], n_boot=20)
    assert means["n"].max() == len(chosen.table)
    steps = controls.down_the_cascade(explain, model, chosen, "white", 20, 0)
    assert steps["value"].between(-1, 1).all()
    assert steps["low"].isna().all() == (chosen.table["group"].nunique() == 1)
