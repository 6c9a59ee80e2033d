"""Blanked images: what is filled and what is not, networks that look at one region alone, chance and the sentence."""

import naive
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from cervix_utils import config, metrics, paths, plots, recipes, runs, shortcuts, training
from cervix_utils.datasets import CLASSES

pytestmark = pytest.mark.usefixtures("one_thread")


def drawn(n: int = 4, size: tuple[int, int] = (9, 7), seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, 3, *size), dtype=np.uint8), rng.integers(0, 5, (n, *size), dtype=np.uint8)


@pytest.mark.parametrize("region", shortcuts.REGIONS)
def test_blanking_equals_a_loop_over_pixels(region):
    pixels, masks = drawn()
    slow = [naive.blank(*pair, region, shortcuts.GREY) for pair in zip(pixels, masks)]
    np.testing.assert_array_equal(shortcuts.blank(pixels, masks, region), slow)


@pytest.mark.parametrize("region", shortcuts.REGIONS)
def test_everything_outside_the_region_stays_and_the_input_too(region):
    pixels, masks = drawn()
    before, found = pixels.copy(), shortcuts.blank(pixels, masks, region)
    outside = np.repeat(~shortcuts.REGIONS[region](masks)[:, None], 3, axis=1)
    np.testing.assert_array_equal(found[outside], pixels[outside])
    np.testing.assert_array_equal(pixels, before)
    assert found.dtype == np.uint8 and (found != pixels).any()


def test_cell_and_background_make_up_the_image_and_the_nucleus_is_in_the_cell():
    masks = np.arange(5)
    cell, ground, nucleus = (shortcuts.REGIONS[name](masks) for name in ("cell", "background", "nucleus"))
    assert (cell ^ ground).all() and not (nucleus & ~cell).any() and nucleus.tolist() == [0, 0, 1, 0, 0]


def test_a_blanked_cell_leaves_a_flat_image_where_the_background_is_flat():
    masks = drawn()[1]
    pixels = np.where(masks[:, None] == 4, 200, drawn(seed=1)[0]).astype(np.uint8)
    assert (shortcuts.blank(pixels, masks, "cell") == 200).all()


def test_the_background_takes_one_grey_for_all_images():
    pixels, masks = drawn()
    found = shortcuts.blank(pixels, np.full_like(masks, 4), "background")
    assert (found == np.array(shortcuts.GREY)[:, None, None]).all()


def test_an_image_without_background_or_without_nucleus_is_no_accident():
    pixels, masks = drawn()
    assert (shortcuts.blank(pixels, np.full_like(masks, 3), "cell") == np.array(shortcuts.GREY)[:, None, None]).all()
    np.testing.assert_array_equal(shortcuts.blank(pixels, np.full_like(masks, 3), "nucleus"), pixels)
    np.testing.assert_array_equal(shortcuts.blank(pixels, np.full_like(masks, 3), "background"), pixels)


def test_bad_input_is_named():
    pixels, masks = drawn()
    with pytest.raises(ValueError, match="unknown region 'rim': known are nucleus, cell, background"):
        shortcuts.blank(pixels, masks, "rim")
    with pytest.raises(ValueError, match=r"pixels \(4, 3, 9, 7\) and masks \(3, 9, 7\) do not fit"):
        shortcuts.blank(pixels, masks[:3], "cell")


# Networks that look at one place


class Looks(nn.Module):
    """Severity 0..255 / 51: mean grey of the ``middle`` (the nucleus of ``split``) or of the rest, at a side of 32."""

    def __init__(self, middle: bool):
        super().__init__()
        inside = torch.zeros(32, 32)
        inside[12:20, 12:20] = 1
        self.where = nn.Parameter(inside if middle else 1 - inside, requires_grad=False)

    def forward(self, x):
        return ((x * self.where).sum(dim=(1, 2, 3)) / (3 * self.where.sum()))[:, None]


@pytest.fixture
def recipe():
    """The regression recipe, without normalisation, so that ``Looks`` sees 0..1."""
    made = recipes.herlev(config.validate({}, "defaults"), "regression")
    return made.__class__(
        **(vars(made) | {"image_size": 32, "mean": (0.0,) * 3, "std": (1.0,) * 3, "architecture": "resnet18"})
    )


@pytest.fixture
def split(tmp_path, write_mask) -> pd.DataFrame:
    """10 cells of 32 x 32 on one background: nucleus (8 x 8 in the middle) and cytoplasm of a shade each."""
    rows, indices = [], np.full((32, 32), 4)
    indices[8:24, 8:24], indices[12:20, 12:20] = 3, 2
    for k in range(10):
        shades = np.array([0, 0, 20 * k, 250 - 20 * k, 180], dtype=np.uint8)
        Image.fromarray(shades[indices]).convert("RGB").save(path := tmp_path / f"{k}.BMP")
        mask = write_mask(tmp_path / f"{k}-d.bmp", indices=indices)
        rows.append({"id": f"i{k}", "group": f"g{k}", "part": "train" if k < 4 else "test", "severity": k % 5 + 1,
                     "label": CLASSES["herlev"][k % 5], "path": str(path), "mask": str(mask), "sha256": f"{tmp_path} {k}"})  # fmt: skip
    return pd.DataFrame(rows)


def scores(model, split, recipe, region):
    return shortcuts.predict_blanked(model, split, recipe, "float32", region)["score"].to_numpy()


def test_a_network_falls_to_a_constant_when_all_it_looks_at_is_blanked(split, recipe):
    seen = {region: scores(Looks(True), split, recipe, region) for region in shortcuts.REGIONS}
    expected = 20 * np.arange(4, 10) / 255
    np.testing.assert_allclose(seen["background"], expected, atol=1e-6)
    np.testing.assert_allclose(seen["nucleus"], 180 / 255, atol=1e-6)
    np.testing.assert_allclose(seen["cell"], 180 / 255, atol=1e-6)


def test_a_network_that_looks_elsewhere_does_not_notice(split, recipe):
    plain = training.predict(Looks(False), split, recipe, "float32").query("part == 'test'")["score"].to_numpy()
    np.testing.assert_allclose(scores(Looks(False), split, recipe, "nucleus"), plain, atol=1e-6)
    blanked = scores(Looks(False), split, recipe, "cell")
    assert np.ptp(plain) > 0.05 and np.ptp(blanked) < 1e-6


def test_a_window_and_the_images_own_background_are_minded(split, recipe):
    zoomed = recipe.__class__(**(vars(recipe) | {"window": 16}))  # nothing but the cell is left in view
    assert scores(Looks(True), split, zoomed, "cell") == pytest.approx(np.mean(shortcuts.GREY) / 255, abs=1e-6)


def test_test_images_with_a_mask_are_predicted_and_the_others_counted(split, recipe):
    split.loc[[0, 5, 7], "mask"] = ""
    found = shortcuts.predict_blanked(Looks(True), split, recipe, "float32", "nucleus")
    assert found["id"].tolist() == ["i4", "i6", "i8", "i9"] and set(found["part"]) == {"test"}
    assert shortcuts.without_mask(split).to_dict() == {"train": 1, "test": 2}
    metrics.check_predictions(found, "herlev")
    with pytest.raises(ValueError, match="no test image has a mask"):
        shortcuts.predict_blanked(Looks(True), split.assign(mask=""), recipe, "float32", "nucleus")


@pytest.mark.parametrize("pipeline", ["combined", "corn", "regression"])
def test_a_finished_run_is_read_and_nothing_blanked_is_its_own_table(split, recipe, tmp_path, monkeypatch, pipeline):
    from cervix_utils import losses, networks

    torch.manual_seed(0)
    own = recipe.__class__(**(vars(recipe) | {"pipeline": pipeline}))
    model = networks.network("resnet18", own.head, losses.n_outputs(pipeline, 5)).eval()
    model.fc[-1].weight.data *= 1000  # so that blanks count in the five decimals that are kept
    predictions = training.predict(model, split, own, "float32")
    run = runs.write(tmp_path / "run", model, vars(own), pd.DataFrame({"epoch": [1]}), predictions)
    split.loc[9, "mask"] = ""
    found = shortcuts.predict_all(run, split, own, "cpu", "float32", tmp_path)
    kept = [paths.reference_file(tmp_path, "herlev", f"{pipeline}_without_{r}", "paper", 0) for r in shortcuts.REGIONS]
    assert all(file.is_file() for file in kept)
    assert list(found) == ["nothing", *shortcuts.REGIONS]
    assert all(table["id"].tolist() == [f"i{k}" for k in range(4, 9)] for table in found.values())
    assert not found["cell"]["score"].equals(found["nothing"]["score"])
    monkeypatch.setattr(shortcuts, "blank", lambda pixels, masks, region: pixels)
    same = shortcuts.predict_all(run, split, own, "cpu", "float32", tmp_path)["nucleus"]
    pd.testing.assert_frame_equal(same, found["nothing"], rtol=0, atol=1e-4)
    (run.folder / "model.safetensors").unlink()  # an adopted run
    monkeypatch.setattr(shortcuts, "predict_blanked", None)
    read = shortcuts.predict_all(run, split, own, "cpu", "float32", tmp_path)
    assert list(read) == list(found)
    pd.testing.assert_frame_equal(read["nucleus"], same)
    kept[0].unlink()
    with pytest.raises(runs.RunError, match=r"lacks model.safetensors: delete the folder and run the notebook"):
        shortcuts.predict_all(run, split, own, "cpu", "float32", tmp_path)


# Numbers, chance, words and the figure


def table(label: list[int], said: list[int], part: str = "test") -> pd.DataFrame:
    names = CLASSES["herlev"]
    found = pd.DataFrame({"id": [f"i{k}" for k in range(len(label))], "group": [f"g{k}" for k in range(len(label))]})
    found = found.assign(part=part, label=[names[k] for k in label])
    return found.join(pd.DataFrame(np.eye(5)[said], columns=[f"p_{name}" for name in names])).assign(
        score=np.add(said, 1)
    )


@pytest.fixture
def numbers() -> pd.DataFrame:
    label = [0, 1, 2, 3, 4] * 6
    said = {"nothing": label, "nucleus": [0] * 30, "cell": [(k + 1) % 5 for k in label], "background": label}
    return shortcuts.numbers({"combined": {name: table(label, values) for name, values in said.items()}}, 50, 0)


def test_numbers_are_the_metrics_by_pipeline_and_region(numbers):
    rows = numbers[numbers["metric"] == "accuracy"].set_index("blanked")["value"]
    assert rows.to_dict() == pytest.approx({"nothing": 1, "nucleus": 0.2, "cell": 0, "background": 1})
    assert list(numbers.columns) == ["pipeline", "blanked", "metric", "value", "low", "high"]
    assert set(numbers["pipeline"]) == {"combined"}
    empty = shortcuts.numbers({}, 50, 0)
    assert empty.empty and list(empty.columns) == list(numbers.columns) and shortcuts.what_is_left(empty, 0.2) == []


def test_chance_is_the_best_constant_of_training():
    train, test = [1, 1, 1, 2, 5, 5], [1, 3, 3, 5]
    split = pd.DataFrame({"part": ["train"] * 4 + ["valid"] * 2 + ["test"] * 4, "severity": train + test, "mask": "m"})
    split["label"] = [CLASSES["herlev"][k - 1] for k in split["severity"]]
    mean = np.mean(train)
    expected = {"accuracy": 0.25, "binary_accuracy": 0.75, "mse": np.mean([(k - mean) ** 2 for k in test])}
    assert shortcuts.chance(split) == pytest.approx(expected)
    split.loc[9, "mask"] = ""
    assert shortcuts.chance(split)["accuracy"] == pytest.approx(1 / 3)
    split.loc[split["part"] != "test", "severity"] = [1, 1, 1, 1, 5, 5]
    assert shortcuts.chance(split)["binary_accuracy"] == pytest.approx(1 / 3)


def test_the_sentence_says_what_is_above_chance(numbers):
    (sentence,) = shortcuts.what_is_left(numbers, 0.4)
    assert (
        "**combined**: accuracy 1.000 as it is, 0.200 without the nucleus, 0.000 without the cell, 1.000 w" in sentence
    )
    assert sentence.endswith("gives 0.400; the network is clearly above it without the background.")
    (sentence,) = shortcuts.what_is_left(numbers, 0.15)  # 0.2 without the nucleus: above, but not its interval
    assert sentence.endswith("clearly above it without the background.")
    (sentence,) = shortcuts.what_is_left(numbers, 1.0)
    assert sentence.endswith("not clearly above it in any case.")


def test_the_figure_has_a_line_a_region_and_chance(numbers):
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots()
    plots.blanked(ax, pd.concat([numbers, numbers.assign(pipeline="corn")]), "binary_accuracy", 0.7)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["nothing", "nucleus", "cell", "background"]
    assert ax.get_legend_handles_labels()[1] == ["chance", "combined", "corn"]
    assert list(ax.lines[-1].get_xdata()) == [0.7, 0.7] and ax.get_xlabel() == "binary accuracy"
    plt.close(figure)
