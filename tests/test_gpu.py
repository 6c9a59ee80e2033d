"""What must hold on a CUDA GPU: it is found, used and recorded, and computes as a CPU does."""

import gc
from dataclasses import replace

import numpy as np
import pytest
import torch
import toys

from cervix_utils.explanation import attribution
from cervix_utils.training import fitting, gpu, learners, runs

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no CUDA GPU here"),
]
GPU = "cuda"


def recipe_of(pipeline: str, **changes):
    """The demo's recipe with the real architecture, small and short."""
    real = "resnet50" if pipeline in ("sgd", "modern") else "resnet101"
    return toys.recipe_of(pipeline, **({"architecture": real, "image_size": 64} | changes))


@pytest.fixture(scope="module")
def trained(tiny_demo, tmp_path_factory):
    """A ResNet-101 with the combined loss, trained on the GPU."""
    recipe = recipe_of("combined", epochs=30)
    split = toys.split_of(tiny_demo, recipe)
    return split, recipe, runs.obtain(split, recipe, tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize("pipeline", ["classification", "regression", "sgd", "modern"])
def test_every_pipeline_trains_on_the_gpu_and_says_so(tiny_demo, tmp_path, pipeline):
    recipe = recipe_of(pipeline)
    run = runs.obtain(toys.split_of(tiny_demo, recipe), recipe, tmp_path)
    assert run.recipe["device"] == torch.cuda.get_device_name()
    assert run.recipe["computed_in"] == "bf16" and run.recipe["precision"] == "auto"
    assert np.isfinite(run.history.to_numpy()).all() and (run.predictions["part"] == "test").any()


def test_a_finished_run_is_read_and_not_trained_again(trained, capsys):
    split, recipe, run = trained
    again = runs.obtain(split, recipe, run.folder.parents[2], "cpu")  # nor for another device
    assert "read from the finished run" in capsys.readouterr().out
    assert again.predictions.equals(run.predictions)


@pytest.mark.parametrize("pipeline", ["combined", "regression"])
def test_the_learner_of_a_run_answers_on_the_gpu(tiny_demo, tmp_path, pipeline):
    recipe = recipe_of(pipeline, test_flips=1)
    split = toys.split_of(tiny_demo, recipe)
    learn = runs.learner(runs.obtain(split, recipe, tmp_path), split)
    with learn.no_bar():
        answers, targets, losses = learn.get_preds(with_loss=True)
        label, _, _ = learn.predict(split["path"][0])
    assert next(learn.model.parameters()).device.type == GPU
    assert len(answers) == len(targets) == len(losses) and losses.isfinite().all()
    assert pipeline == "regression" or label in learn.dls.vocab


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 0.005), ("bf16", 0.05)])
def test_predictions_are_those_of_a_cpu_in_float32(trained, precision, tolerance):
    split, recipe, run = trained
    columns = [f"p_{name}" for name in recipe.classes]
    plain = replace(recipe, precision="float32")
    cpu = fitting.predict(runs.load_model(run), split, plain)[columns].to_numpy()
    asked = replace(recipe, precision=precision)
    gpu = fitting.predict(runs.load_model(run, GPU), split, asked)[columns].to_numpy()
    assert np.abs(gpu - cpu).max() < tolerance
    assert np.ptp(cpu, axis=0).max() > 0.02  # not all alike, or the line above says nothing


def test_an_interrupt_leaves_autocast_off(tiny_demo):
    recipe = recipe_of("combined", precision="bf16")
    learn = learners.build(toys.split_of(tiny_demo, recipe), recipe)

    def interrupt(*parts):
        raise KeyboardInterrupt

    learn.model.layer2.register_forward_hook(interrupt)
    with learn.no_bar(), learn.no_logging(), pytest.raises(KeyboardInterrupt):
        learn.fit_one_cycle(1)
    assert not torch.is_autocast_enabled(GPU)


def test_integrated_gradients_are_those_of_a_cpu(trained):
    _, recipe, run = trained
    pictures = np.random.default_rng(0).random((2, 3, 64, 64), dtype=np.float32)
    maps = {}
    for device in ("cpu", GPU):
        model = runs.load_model(run, device)
        severity = attribution.FromPixels(model, recipe.mean, recipe.std, len(recipe.classes))
        pixels = torch.from_numpy(pictures).to(device)
        white = torch.ones_like(pixels)
        found = attribution.integrated_gradients(severity, pixels, white, bound=0.01)
        assert np.abs(found.deltas).max() < 0.01
        maps[device] = found.maps
    error = np.abs(maps[GPU] - maps["cpu"]).sum() / np.abs(maps["cpu"]).sum()
    assert error < 0.01, f"the maps differ by {error:.1%}"  # several percent with cuDNN's TF32


def test_a_gpu_is_taken_unless_the_cpu_is_asked_for():
    assert learners.pick_device("auto") == learners.pick_device("cuda") == "cuda"
    assert learners.pick_device("cpu") == "cpu"


@pytest.mark.parametrize(("pipeline", "precision"), [("combined", "float32"), ("modern", "bf16")])
def test_replayed_steps_train_as_plain_ones_do(tiny_demo, pipeline, precision):
    recipe = recipe_of(pipeline, epochs=6, precision=precision, batch_size=4)
    split, losses = toys.split_of(tiny_demo, recipe), []
    for plain in (True, False):
        learn = learners.build(split, recipe)
        if plain:
            learn.remove_cbs([gpu.PicturesOnGpu, gpu.GraphedStep])
        fitting.fit(learn, recipe)
        losses.append(np.array([float(loss) for loss in learn.recorder.losses]))
    assert np.allclose(*losses, atol=1e-3 if precision == "float32" else 0.05)


def test_the_memory_of_a_captured_step_is_given_back(tiny_demo):
    recipe = recipe_of("combined", epochs=2)
    split, left = toys.split_of(tiny_demo, recipe), []
    for _ in range(3):
        fitting.fit(learners.build(split, recipe), recipe)
        gc.collect()
        torch.cuda.empty_cache()
        left.append(torch.cuda.memory_reserved())
    assert left[2] <= left[0] + 2**25
