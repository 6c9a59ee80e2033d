"""What must hold on a CUDA GPU: it is found, used and recorded; what it computes is what a CPU computes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cervix_utils import attribution, config, datasets, devices, integration, recipes, runs, splits, training

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no CUDA GPU here"),
]


def recipe_of(task: str, pipeline: str, **changes) -> recipes.Recipe:
    """The demo's recipe with the real architecture, small and short."""
    made = getattr(recipes, task)(config.validate({}, "defaults"), pipeline)
    return replace(made, **({"image_size": 64, "batch_size": 5, "epochs": 2, "valid_fraction": 0.3} | changes))


@pytest.fixture(scope="module")
def split_of(tiny_demo):
    def make(recipe: recipes.Recipe):
        table = splits.with_groups(datasets.load(tiny_demo, recipe.task)[0], recipe.phash_distance)
        return splits.assign_parts(table, recipe.task, "paper", 0, recipe.n_folds, recipe.valid_fraction, recipe.seed)

    return make


@pytest.fixture(scope="module")
def trained(split_of, tmp_path_factory):
    """A ResNet-101 with the combined loss, trained on the GPU."""
    recipe = recipe_of("herlev", "combined", epochs=30, selection="last")
    split = split_of(recipe)
    return split, recipe, runs.obtain(split, recipe, tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize(
    ("task", "pipeline"),
    [("herlev", name) for name in ("classification", "regression", "corn", "soft_labels")]
    + [("colposcopy", "sgd"), ("colposcopy", "modern")],
)
def test_every_pipeline_trains_on_the_gpu_and_says_so(split_of, tmp_path, task, pipeline):
    recipe = recipe_of(task, pipeline, epochs=1)
    run = runs.obtain(split_of(recipe), recipe, tmp_path)
    assert run.recipe["device"] == torch.cuda.get_device_name() and run.recipe["precision"] == "bf16"
    assert np.isfinite(run.history.to_numpy()).all() and (run.predictions["part"] == "test").any()


def test_balanced_progressive_and_stained_batches_are_made_on_the_gpu(split_of, tmp_path):
    recipe = recipe_of("herlev", "combined", balanced=True, progressive=True, stain=0.15, epochs=4)
    assert np.isfinite(runs.obtain(split_of(recipe), recipe, tmp_path).history.to_numpy()).all()


def test_a_finished_run_is_read_and_not_trained_again(trained, capsys):
    split, recipe, run = trained
    again = runs.obtain(split, recipe, run.folder.parents[2])
    assert "read from a finished run" in capsys.readouterr().out
    assert again.predictions.equals(run.predictions)


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 0.005), ("bf16", 0.05)])
def test_predictions_are_those_of_a_cpu_in_float32(trained, precision, tolerance):
    split, recipe, run = trained
    columns = [name for name in run.predictions if name.startswith("p_")]
    cpu = training.predict(runs.load_model(run), split, recipe, "float32")[columns].to_numpy()
    gpu = training.predict(runs.load_model(run, "cuda"), split, recipe, precision)[columns].to_numpy()
    assert np.abs(gpu - cpu).max() < tolerance
    assert np.ptp(cpu, axis=0).max() > 0.02  # not all alike, or the line above says nothing


def test_integrated_gradients_are_those_of_a_cpu(trained):
    _, recipe, run = trained
    pictures = np.random.default_rng(0).random((2, 3, 64, 64), dtype=np.float32)
    maps = {}
    for device in ("cpu", "cuda"):
        network = attribution.FromPixels(runs.load_model(run, device), recipe.mean, recipe.std)
        pixels = torch.from_numpy(pictures).to(device)
        found = integration.integrated_gradients(
            attribution.Severity(network), pixels, torch.ones_like(pixels), bound=0.01
        )
        assert np.abs(found.deltas).max() < 0.01
        maps[device] = found.maps
    error = np.abs(maps["cuda"] - maps["cpu"]).sum() / np.abs(maps["cpu"]).sum()
    assert error < 0.01, f"the maps differ by {error:.1%}"  # several percent with the TF32 that cuDNN takes unasked


def test_a_gpu_is_taken_unless_the_cpu_is_asked_for():
    assert devices.pick_device("auto")[0] == devices.pick_device("cuda")[0] == "cuda"
    assert devices.pick_device("cpu")[0] == "cpu"
