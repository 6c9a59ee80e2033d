"""Explanations of one network: which cells are chosen, maps made once and read again, tables of them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from cervix_utils import attribution, datasets, explanations, images, integration, losses, metrics, regions, runs
from cervix_utils.datasets import CLASSES

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = CLASSES["herlev"]
METHODS = [("integrated_gradients", "white"), ("occlusion", "background"), ("grad_cam", ""), ("guided_grad_cam", "")]


@pytest.fixture(scope="module")
def cells(tiny_demo) -> pd.DataFrame:
    return datasets.load(str(tiny_demo), "herlev", 0)[0]


def run_of(cells: pd.DataFrame, **recipe) -> runs.Run:
    """A finished run of random answers: every third cell trained it, the others tested it."""
    table = cells[["id", "label"]].assign(group=cells["name_group"], part="test").reset_index(drop=True)
    table.loc[::3, "part"] = "train"
    p = np.random.default_rng(0).dirichlet(np.ones(5), len(table))
    table = table.join(pd.DataFrame(p, columns=[f"p_{name}" for name in NAMES])).assign(score=p @ np.arange(1, 6))
    facts = {"task": "herlev", "pipeline": "combined", "protocol": "paper", "fold": 0, "image_size": 32, "window": 0}
    return runs.Run(Path("nowhere"), facts | recipe, pd.DataFrame(), table)


# Which cells


@pytest.mark.parametrize("window", [0, 40])
def test_test_images_are_chosen_with_their_pictures_their_masks_and_the_mean_of_training(cells, window):
    run = run_of(cells, window=window)
    found = explanations.choose(run, cells, 10, 0)
    assert found.table["id"].isin(run.test["id"]).all() and found.table["id"].is_unique
    assert found.table["label"].value_counts().to_dict() == dict.fromkeys(NAMES, 2)
    assert found.table["severity"].tolist() == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert {"path", "mask", *explanations.ABOUT} <= set(found.table)
    np.testing.assert_array_equal(found.pictures, images.squares(found.table["path"], 32, window))
    np.testing.assert_array_equal(found.masks, images.square_masks(found.table["mask"], 32, window))
    train = cells[cells["id"].isin(run.predictions["id"][::3])]
    slow = np.mean([image / 255 for image in images.squares(train["path"], 32, window)], axis=0)
    np.testing.assert_allclose(found.mean, slow, rtol=0, atol=1e-6)


def test_a_run_without_a_window_saw_whole_images(cells):
    run = run_of(cells)
    older = replace(run, recipe={key: value for key, value in run.recipe.items() if key != "window"})
    both = [explanations.choose(one, cells, 5, 0).pictures for one in (run, older)]
    np.testing.assert_array_equal(*both)


def test_one_seed_gives_one_choice_and_another_seed_another(cells):
    choice = lambda seed: explanations.choose(run_of(cells), cells, 10, seed).table["id"].tolist()  # noqa: E731
    assert choice(3) == choice(3)
    assert len({tuple(choice(seed)) for seed in range(4)}) == 4


@pytest.mark.parametrize("n", [1, 3, 5, 7, 13])
def test_no_more_are_chosen_than_asked_for_and_classes_differ_by_one_at_most(cells, n):
    found = explanations.choose(run_of(cells), cells, n, 0)
    assert len(found.table) == len(found.pictures) == len(found.masks) == n
    counts = found.table["label"].value_counts().reindex(NAMES, fill_value=0)
    assert counts.max() - counts.min() <= 1


def test_all_test_images_are_chosen_where_more_are_asked_for(cells):
    run = run_of(cells)
    masked = set(cells.loc[cells["mask"] != "", "id"])
    assert set(explanations.choose(run, cells, 1000, 0).table["id"]) == set(run.test["id"]) & masked
    with pytest.raises(attribution.AttributionError, match=r"attribution_images is 0.*give 1 or more"):
        explanations.choose(run, cells, 0, 0)


def test_cells_with_a_mask_go_first(cells):
    run, some = run_of(cells), cells.copy()
    has = some.index[some["id"].isin(run.test["id"]) & (some["mask"] != "")][::2]
    some.loc[~some.index.isin(has), "mask"] = ""
    found = explanations.choose(run, some, 1000, 0)
    assert set(found.table["id"]) == set(some.loc[has, "id"])
    assert (found.masks == images.NUCLEUS).any(axis=(1, 2)).all()


def test_without_any_mask_all_pixels_are_unknown_and_maps_can_still_be_made(cells, small_network, tmp_path):
    found = explanations.choose(run_of(cells), cells.assign(mask=""), 5, 0)
    assert len(found.table) == 5 and (found.masks == 0).all() and found.masks.shape == (5, 32, 32)
    made = explanations.Explainer(tmp_path, "k")(small_network(), found, "integrated_gradients", "background")
    np.testing.assert_allclose(made.shares["signed_at_unknown"], 1, rtol=0, atol=1e-6)


def test_data_of_another_run_are_refused_by_its_name(cells):
    words = "herlev combined paper-0: none of its test images is in this data: give the data it saw"
    with pytest.raises(attribution.AttributionError, match=words):
        explanations.choose(run_of(cells), cells.assign(id=cells["id"] + "x"), 5, 0)


def test_what_a_network_named_is_its_most_probable_class_or_its_rounded_score(cells):
    run = run_of(cells)
    named = lambda run: explanations.choose(run, cells, 1000, 0).table.set_index("id")["predicted"]  # noqa: E731
    expected = pd.Series(np.array(NAMES)[metrics.predicted_class(run.test)], index=run.test["id"])
    found = named(run)
    assert found.equals(expected[found.index].rename("predicted")) and found.nunique() == 5
    scores = np.resize([-3, 1.4, 1.6, 2.5, 3.2, 4.4, 9], len(run.predictions))
    regressed = run.predictions.assign(score=scores, **{f"p_{name}": np.nan for name in NAMES})
    run = replace(run, predictions=regressed)
    found, score = named(run), run.test.set_index("id")["score"]
    severities = {-3: 1, 1.4: 1, 1.6: 2, 2.5: 2, 3.2: 3, 4.4: 4, 9: 5}
    assert found.tolist() == [NAMES[severities[score[i]] - 1] for i in found.index]


def test_the_first_cells_are_the_first_of_each_class(few_cells):
    three = few_cells.first(3)
    assert three.table["id"].tolist() == ["i0", "i2", "i4"] and three.table.index.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(three.pictures, few_cells.pictures[::2])
    np.testing.assert_array_equal(three.masks, few_cells.masks[::2])
    assert three.mean is few_cells.mean and three.device == "cpu" and three.pixels.shape == (3, 3, 16, 16)
    assert few_cells.first(4).table["id"].tolist() == ["i0", "i1", "i2", "i4"]
    assert few_cells.first(1).table["id"].tolist() == ["i0"]
    assert few_cells.first(60).table.equals(few_cells.table)


@pytest.mark.parametrize("kind", attribution.BASELINES)
def test_baselines_are_made_of_the_cells_own_pictures_masks_and_mean(few_cells, kind):
    pixels = torch.from_numpy(few_cells.pictures).float() / 255
    assert torch.equal(few_cells.pixels, pixels)
    assert torch.equal(few_cells.baseline(kind), attribution.baseline(kind, pixels, few_cells.masks, few_cells.mean))


# Maps, made once


@pytest.fixture
def explain(tmp_path) -> explanations.Explainer:
    return explanations.Explainer(tmp_path / "maps", "abc", steps=4)


def kept(explain: explanations.Explainer) -> list[Path]:
    return sorted(explain.folder.iterdir()) if explain.folder.exists() else []


def same(one: explanations.Explained, other: explanations.Explained) -> None:
    for name in explanations.ARRAYS:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        assert getattr(one, name).dtype == getattr(other, name).dtype


@pytest.mark.parametrize("outputs", [1, 5])
def test_maps_are_those_of_the_severity_score(explain, few_cells, small_network, outputs):
    network, pixels = small_network(outputs), few_cells.pixels
    score = attribution.Severity(network)
    white, ground = few_cells.baseline("white"), few_cells.baseline("background")
    slow = {
        "integrated_gradients": integration.integrated_gradients(score, pixels, white, 4).maps,
        "occlusion": attribution.occlusion(score, pixels, ground),
        "grad_cam": attribution.grad_cam(network, pixels),
        "guided_grad_cam": attribution.guided_grad_cam(network, pixels),
    }
    for method, baseline in METHODS:
        found = explain(network, few_cells, method, baseline)
        np.testing.assert_array_equal(found.maps, slow[method])
        assert found.maps.dtype == np.float32 and found.maps.shape == (6, 16, 16) and np.ptp(found.maps) > 0
        assert (found.network, found.method, found.baseline) == ("trained", method, baseline)
        assert found.table is few_cells.table and found.masks is few_cells.masks
        expected = losses.score(network(pixels)).numpy()
        np.testing.assert_allclose(found.scores, expected, rtol=0, atol=1e-6)
        assert np.isnan(found.start_scores).all() == (baseline == "")
        assert np.isnan(found.deltas).all() == np.isnan(found.steps).all() == (method != "integrated_gradients")


def test_deltas_are_what_the_maps_and_the_scores_leave_open(explain, few_cells, small_network):
    found = explain(small_network(), few_cells, "integrated_gradients", "white")
    change = found.scores - found.start_scores
    np.testing.assert_allclose(found.deltas, found.maps.sum(axis=(1, 2)) - change, rtol=0, atol=1e-5)
    assert found.steps.tolist() == [4] * 6 and np.abs(change).min() > 1e-3


def test_the_bound_and_the_rule_reach_the_integration(explain, few_cells, small_network):
    network = small_network()
    found = replace(explain, bound=1e-3)(network, few_cells, "integrated_gradients", "white")
    assert np.abs(found.deltas).max() <= 1e-3 and found.steps.max() > 4
    literal = replace(explain, rule="literal")(network, few_cells, "integrated_gradients", "white")
    white = few_cells.baseline("white")
    slow = integration.integrated_gradients(attribution.Severity(network), few_cells.pixels, white, 4, "literal")
    np.testing.assert_array_equal(literal.maps, slow.maps)


def test_the_grid_of_grad_cam_is_shown_or_smoothed(explain, few_cells, small_network):
    network = small_network()
    coarse = replace(explain, grid=True)(network, few_cells, "grad_cam").maps.reshape(6, 4, 4, 4, 4)
    assert (coarse == coarse[:, :, :1, :, :1]).all()
    smooth = explain(network, few_cells, "grad_cam").maps.reshape(6, 4, 4, 4, 4)
    assert not (smooth == smooth[:, :, :1, :, :1]).all()


@pytest.mark.parametrize(("method", "baseline"), METHODS)
def test_a_kept_map_is_read_without_its_network_and_needs_no_pickle(
    explain, few_cells, small_network, method, baseline
):
    first = explain(small_network(), few_cells, method, baseline)
    (file,) = kept(explain)
    assert file.name.startswith("-".join(filter(None, ["trained", method, baseline]))) and file.suffix == ".npz"
    with np.load(file, allow_pickle=False) as found:
        assert sorted(found.files) == sorted(["id", *explanations.ARRAYS])
        assert found["id"].tolist() == few_cells.table["id"].tolist()
    before = file.stat().st_mtime_ns
    same(explain(None, few_cells, method, baseline), first)  # there is no network to compute with
    assert kept(explain) == [file] and file.stat().st_mtime_ns == before


def test_whatever_decides_a_map_makes_it_anew(explain, few_cells, small_network, monkeypatch):
    network = small_network()
    first = explain(network, few_cells, "integrated_gradients", "white")
    others = [
        replace(explain, steps=5),
        replace(explain, key="other"),
        replace(explain, bound=0.5),
        replace(explain, rule="literal"),
        replace(explain, grid=True),
    ]
    calls = [(one, few_cells, "white", "trained") for one in others]
    calls += [
        (explain, few_cells.first(3), "white", "trained"),
        (explain, few_cells, "mean", "trained"),
        (explain, few_cells, "white", "random weights"),
    ]
    for count, (one, cells, baseline, name) in enumerate(calls, 2):
        one(network, cells, "integrated_gradients", baseline, name)
        assert len(kept(explain)) == count
    assert any(file.name.startswith("random_weights-integrated_gradients-white-") for file in kept(explain))
    with monkeypatch.context() as patch:
        patch.setattr(explanations.Path, "read_text", lambda self, **_: f"# edited {self.name}")
        explain(network, few_cells, "integrated_gradients", "white")
    assert len(kept(explain)) == len(calls) + 2
    same(explain(None, few_cells, "integrated_gradients", "white"), first)


def test_another_seed_makes_its_own_maps(explain, few_cells, small_network):
    for seed in (0, 1):
        replace(explain, seed=seed)(small_network(seed=seed), few_cells, "grad_cam", name="random weights")
    assert len(list(explain.folder.glob("random_weights-*.npz"))) == 2


def test_another_network_of_another_key_has_other_maps(explain, few_cells, small_network):
    one = explain(small_network(), few_cells, "grad_cam")
    other = replace(explain, key="other")(small_network(seed=1), few_cells, "grad_cam")
    assert np.abs(one.maps - other.maps).max() > 1e-3


def test_a_file_that_cannot_be_written_leaves_nothing_behind(explain, few_cells, small_network, monkeypatch):
    def full(file, **_):
        file.write_bytes(b"half")
        raise OSError("no room")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="no room"):
        patch.setattr(np, "savez_compressed", full)
        explain(small_network(), few_cells, "grad_cam")
    assert kept(explain) == []
    explain(small_network(), few_cells, "grad_cam")
    assert len(kept(explain)) == 1


def test_an_unknown_method_or_baseline_is_refused_and_nothing_is_kept(explain, few_cells, small_network):
    with pytest.raises(attribution.AttributionError, match="unknown method 'lime' of explanation"):
        explain(small_network(), few_cells, "lime")
    with pytest.raises(attribution.AttributionError, match="baseline 'black' is unknown: known are white, "):
        explain(small_network(), few_cells, "integrated_gradients", "black")
    assert kept(explain) == []


def test_many_images_are_scored_in_parts_and_stay_in_order():
    seen = []

    def mean(x: torch.Tensor) -> torch.Tensor:
        seen.append(len(x))
        return x.mean(dim=(1, 2, 3))

    pixels = torch.arange(70.0).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    np.testing.assert_array_equal(explanations.scored(mean, pixels), np.arange(70))
    assert seen == [32, 32, 6]


# What is made of them


def made(cells: explanations.Cells, seed: int = 0, **changes) -> explanations.Explained:
    """Random maps of ``cells``, complete but for random deltas."""
    rng, n = np.random.default_rng(seed), len(cells.table)
    maps, deltas = rng.normal(0.1, 1, (n, *cells.masks.shape[1:])), rng.normal(0, 0.01, n)
    scores, steps = np.random.default_rng(99).uniform(1, 5, n), rng.choice([16, 32, 64], n)
    about = {"network": "trained", "method": "integrated_gradients", "baseline": "white"} | changes
    starts = scores + deltas - maps.sum(axis=(1, 2))
    return explanations.Explained(**about, table=cells.table, masks=cells.masks, maps=maps, deltas=deltas,
                                  steps=steps, scores=scores, start_scores=starts)  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "integrated gradients, white"),
        ({"method": "grad_cam", "baseline": ""}, "grad cam"),
        ({"network": "random weights"}, "integrated gradients, white, random weights"),
        ({"network": "none", "method": "edges", "baseline": ""}, "edges, none"),
    ],
)
def test_names_tell_method_baseline_and_any_network_but_the_trained(few_cells, changes, name):
    assert made(few_cells, **changes).name == name


def test_a_part_of_the_explained_images_comes_in_the_order_asked_for(few_cells):
    whole, rows = made(few_cells), [4, 0, 3]
    table = few_cells.table.iloc[rows].reset_index(drop=True)
    some = replace(few_cells, table=table, pictures=few_cells.pictures[rows], masks=few_cells.masks[rows])
    found = whole.on(some)
    assert found.table["id"].tolist() == ["i4", "i0", "i3"] and found.name == whole.name
    np.testing.assert_array_equal(found.masks, few_cells.masks[rows])
    for name in explanations.ARRAYS:
        np.testing.assert_array_equal(getattr(found, name), getattr(whole, name)[rows])
    pd.testing.assert_frame_equal(found.shares, whole.shares.iloc[rows].reset_index(drop=True))
    same(whole.on(few_cells), whole)


def test_an_image_that_is_not_explained_is_named(few_cells):
    some = made(few_cells.first(3))
    with pytest.raises(attribution.AttributionError, match="integrated gradients, white: image i1 is not among those"):
        some.on(few_cells)


def test_shares_stand_beside_what_their_images_are(few_cells):
    one = made(few_cells)
    assert list(one.shares)[:6] == explanations.ABOUT and len(one.shares) == 6
    pd.testing.assert_frame_equal(one.shares[explanations.ABOUT], few_cells.table[explanations.ABOUT])
    pd.testing.assert_frame_equal(one.shares.iloc[:, 6:], regions.shares(one.maps, few_cells.masks))


def test_the_average_is_complete_towards_the_mean_score_of_the_baselines(few_cells):
    several = [made(few_cells, seed, baseline=kind) for seed, kind in enumerate(attribution.BASELINES)]
    found = explanations.average(several)
    assert found.name == "integrated gradients, average" and found.table is few_cells.table
    np.testing.assert_allclose(found.maps, sum(one.maps for one in several) / 4, rtol=0, atol=1e-12)
    starts = sum(one.start_scores for one in several) / 4
    explained = found.maps.sum(axis=(1, 2)) - found.deltas
    np.testing.assert_allclose(explained, several[0].scores - starts, rtol=0, atol=1e-9)
    np.testing.assert_allclose(found.start_scores, starts, rtol=0, atol=1e-12)


def test_the_average_of_one_baseline_is_that_baselines(few_cells):
    same(explanations.average([made(few_cells)] * 2), replace(made(few_cells), steps=made(few_cells).steps * 1.0))


def test_convergence_counts_images_over_the_bound(few_cells):
    deltas, starts = np.array([0.01, -0.03, 0.02, -0.002, 0.0, 0.021]), np.array([1, 5, 2, 3, 4, 3.5])
    white = replace(made(few_cells), deltas=deltas, start_scores=starts, steps=np.array([16, 512, 16, 16, 16, 64]))
    other = replace(made(few_cells.first(3), baseline="mean"), deltas=np.zeros(3))
    found = explanations.convergence([white, other], 0.02)
    assert found.index.tolist() == ["white", "mean"] and found["images"].tolist() == [6, 3]
    row = {
        "images": 6,
        "score of baseline, median": 3.25,
        "lowest": 1,
        "highest": 5,
        "delta, median size": 0.015,
        "largest": 0.03,
        "steps, mean": 640 / 6,
        "most": 512,
        "over the bound": 2,
    }
    assert found.loc["white"].to_dict() == pytest.approx(row, abs=1e-12) and list(found) == list(row)
    assert found.loc["mean", ["largest", "over the bound"]].tolist() == [0, 0]


def test_one_right_and_one_wrong_image_of_every_class_are_shown_the_right_one_first():
    rows = [(3, "c", "a"), (1, "a", "b"), (1, "a", "a"), (3, "c", "b"), (1, "a", "a"), (2, "b", "b"), (2, "b", "b")]
    table = pd.DataFrame(rows, columns=["severity", "label", "predicted"], index=list("tuvwxyz"))
    assert explanations.right_and_wrong(table) == [2, 1, 5, 0]  # class b is never wrong, class c never right
    assert explanations.right_and_wrong(table.iloc[:0]) == []


def test_the_table_has_a_row_an_image_method_and_baseline_in_order(few_cells):
    white, mean = made(few_cells), made(few_cells.first(3), 1, baseline="mean")
    none = np.full(6, np.nan)
    cam = replace(made(few_cells, 2, method="grad_cam", baseline=""), deltas=none, steps=none)
    blind = made(few_cells, 3, network="random weights")
    found = explanations.table([blind, white, mean, cam])
    assert len(found) == 6 + 3 + 6 + 6
    about = ["network", "method", "baseline", "deltas", "steps", "scores", "start_scores"]
    assert list(found)[:13] == [*explanations.ABOUT, *about]
    assert set(found) == {*explanations.ABOUT, *about, *regions.shares(white.maps, white.masks)}
    order = list(found[["network", "method", "baseline", "id"]].itertuples(index=False, name=None))
    assert order == sorted(order) and len(set(order)) == len(order)
    for one in (white, mean, cam, blind):
        rows = found[["network", "method", "baseline"]].eq([one.network, one.method, one.baseline]).all(axis=1)
        mine = found[rows].set_index("id").loc[one.table["id"]]
        np.testing.assert_array_equal(mine["deltas"], one.deltas)
        np.testing.assert_array_equal(mine["scores"], one.scores)
        np.testing.assert_array_equal(mine["signed_at_nucleus"], one.shares["signed_at_nucleus"])
