"""`make bench`: each comparison in turn, its sides alternating in fresh processes.

python -m benchmarks                     # everything, about 50 minutes on 2 cores
python -m benchmarks groups predict      # some of them; the others' rows are kept
python -m benchmarks --rounds 1 train    # a first look

Results: results/<machine>.csv and .svg. Pictures and caches: a folder in TMPDIR, kept.
"""

import argparse
import datetime
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from PIL import Image

from cervix_utils import paths
from cervix_utils.data import demo
from cervix_utils.training import learners

RESULTS = Path(__file__).parent / "results"
SCRATCH = Path(tempfile.gettempdir()) / "cervix-benchmarks"
TRAINED = {"resnet101": 128, "resnet50": 224}  # network -> side in pixels
ON_GPU = [("resnet101", 224), ("resnet101", 128), ("resnet50", 224)]
GPU_OTHERS = {
    "float32": ("stock fastai, float32", "3"),
    "to_fp16": ("stock fastai, to_fp16", "2.5"),
}
GPU_OTHERS["bare"] = ("bare captured loop in memory", "0.85")
OTHERS = {"stock": ("stock fastai", "3"), "bare": ("bare loop in memory", "0.92")}
THEIRS = ("stock", "plain", "captum", "pairs")  # what the names of the other sides end in
SHOWN = ["what", "against", "ours", "other", "ratio", "aim", "note"]
Side = tuple[str, dict]  # a function of sides.py and its arguments


def environment(side: str) -> dict[str, str]:
    """Our sides get the variables that the Makefile gives to every command, the others do not."""
    text = (paths.ROOT / "Makefile").read_text()
    ours = dict(re.findall(r"^export (MALLOC\w+) = (.*)$", text, re.MULTILINE))
    shared = {"PYTHONWARNINGS": "ignore", "TQDM_DISABLE": "1"}
    shared["CERVIX_CACHE"] = str(SCRATCH / "cache")
    return {**os.environ, **shared, **({} if side.endswith(THEIRS) else ours)}


def run(side: str, **arguments) -> dict:
    """One side in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.sides", side, json.dumps(arguments)]
    options = {"cwd": paths.ROOT, "env": environment(side), "capture_output": True, "text": True}
    done = subprocess.run(command, check=False, **options)
    if done.returncode:
        raise SystemExit(f"benchmark side {side} {arguments} failed:\n{done.stderr[-3000:]}")
    result = json.loads(done.stdout.strip().splitlines()[-1])
    print(f"  {side} {arguments}  {result['seconds']:.3f} s", flush=True)
    return result


def alternate(sides: Mapping[str, Side], rounds: int) -> dict[str, list[dict]]:
    """Every side once a round, in turn, so that a machine that slows down slows all of them."""
    results = {name: [] for name in sides}
    for _ in range(rounds):
        for name, (side, arguments) in sides.items():
            results[name].append(run(side, **arguments))
    return results


def rates(results: list[dict]) -> list[float]:
    """Units of work a second of each round."""
    return [result["work"] / result["seconds"] for result in results]


def row(what, against, unit, ours: list[float], other: list[float], aim="", note="") -> dict:
    """Medians, and the ratio ours / other pair by pair: median, smallest, largest."""
    ratios = [a / b for a, b in zip(ours, other)]
    values = {"ours": statistics.median(ours), "other": statistics.median(other)}
    values |= {"ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}
    numbers = {name: float(f"{value:.4g}") for name, value in values.items()}
    words = {"what": what, "against": against, "unit": unit}
    return {**words, **numbers, "aim": aim, "rounds": len(ours), "note": note}


def rate_row(what, against, unit, results: Mapping[str, list[dict]], aim="", note="") -> dict:
    """``row`` of the rates of two sides, ours first."""
    ours, other = results.values()
    return row(what, against, unit, rates(ours), rates(other), aim, note)


def imports(rounds: int) -> list[dict]:
    """Seconds of each notebook's import cell, interpreter included; a first round fills the file
    cache."""
    stock = "from fastai.vision.all import *"
    cells = {"stock": stock}
    for notebook in sorted(paths.NOTEBOOKS.glob("*.ipynb")):
        content = json.loads(notebook.read_text())["cells"]
        first = next(cell for cell in content if cell["cell_type"] == "code")
        cells[notebook.stem] = "".join(first["source"])
    seconds = {name: [] for name in cells}
    for _ in range(rounds + 1):
        for name, code in cells.items():
            seconds[name].append(timed([sys.executable, "-W", "ignore", "-c", code]))
    against = seconds.pop("stock")[1:]
    rows = [(f"imports of {name}", times[1:]) for name, times in seconds.items()]
    return [row(what, stock, "s", times, against, "0.7") for what, times in rows]


def timed(command: list[str], **variables: str) -> float:
    """Seconds that a command takes."""
    start, env = time.perf_counter(), {**os.environ, **variables}
    subprocess.run(command, cwd=paths.ROOT, check=True, capture_output=True, env=env)
    return time.perf_counter() - start


def groups(rounds: int) -> list[dict]:
    """Near-duplicates among hashes, against all pairs in Python."""
    sides = {name: (f"groups_{name}", {"n": 8215}) for name in ("ours", "pairs")}
    words = "near-duplicates among 8215 hashes", "all pairs in Python", "images/s"
    return [rate_row(*words, alternate(sides, rounds), "5")]


def drawn() -> list[Path]:
    """A few drawn photographs, drawn once."""
    folder = SCRATCH / "drawn"
    if not folder.exists():
        with paths.whole(folder) as draft:
            demo.write_demo(draft, 1, 2, 12)
    return sorted((folder / "mobileodt").rglob("train/**/*.jpg"))


def many_photographs() -> str:
    """Folder of 8215 different photographs of 512 x 512 pixels, drawn once."""
    folder, small = SCRATCH / "many-512", drawn()
    if not folder.exists():
        with paths.whole(folder) as draft:
            for k in range(8215):
                picture = Image.open(small[k % len(small)]).convert("RGB").resize((512, 512))
                picture.putpixel((k % 240, k // 240), (255, 0, k % 256))
                file = draft / f"train/Type_{1 + k % 3}/{k}.jpg"
                file.parent.mkdir(parents=True, exist_ok=True)
                picture.save(file, quality=90)
    return str(folder)


def large_photographs() -> str:
    """Folder of 200 JPEGs of 4128 x 3096 pixels with the grain of a camera, drawn once."""
    folder, small, draw = SCRATCH / "large", drawn(), np.random.default_rng(0)
    if not folder.exists():
        grain = draw.normal(0, 3, (4128, 3096, 3)).astype(np.float32)
        with paths.whole(folder) as draft:
            draft.mkdir()
            for k in range(200):
                scene = Image.open(small[k % len(small)]).convert("RGB")
                scene = scene.resize((3096, 4128), Image.Resampling.BICUBIC)
                moved = np.roll(grain, int(draw.integers(4000)), axis=0)
                pixels = (np.asarray(scene, np.float32) + moved).clip(0, 255)
                Image.fromarray(pixels.astype(np.uint8)).save(draft / f"{k}.jpg", quality=90)
    return str(folder)


def reading(rounds: int) -> list[dict]:
    """A folder of 8215 photographs read and checked, on all cores and on one."""
    folder, cores = many_photographs(), os.cpu_count()
    numbers = {"all": cores, "one": 1}
    sides = {name: ("read_folder", {"folder": folder, "cores": n}) for name, n in numbers.items()}
    what = f"reading and checking 8215 photographs, {cores} cores"
    return [rate_row(what, "one core", "files/s", alternate(sides, rounds), f"near {cores}")]


def predict(rounds: int) -> list[dict]:
    """Prediction with four views of each picture."""
    both = {"n": 128, "size": 128}
    results = alternate({"ours": ("predict_ours", both), "plain": ("predict_plain", both)}, rounds)
    what = "prediction with 4 flips, ResNet-101 128 px"
    return [rate_row(what, "plain loop in float32", "img/s", results, "2")]


def explain(rounds: int) -> list[dict]:
    """Integrated Gradients at captum's 50 steps, and how far the map is from one of 400 steps."""
    both, files = {"n": 4, "size": 128}, [str(SCRATCH / f"{k}.npy") for k in (50, 400)]
    sides = {"ours": ("ig_ours", both | {"keep": files[0]}), "captum": ("ig_captum", both)}
    results = alternate(sides, rounds)
    run("ig_ours", **both, steps=400, keep=files[1])
    few, many = map(np.load, files)
    error = abs(few - many).sum() / abs(many).sum()
    ours, other = (statistics.median(r["delta"] for r in side) for side in results.values())
    note = f"median delta {ours:.2g} against {other:.2g}; map {error:.0%} from 400 steps"
    what = "Integrated Gradients, ResNet-101 128 px, 50 steps"
    return [rate_row(what, "captum's defaults", "img/s", results, "3", note)]


def bounded(rounds: int) -> list[dict]:
    """Integrated Gradients of a trained network until the delta of each of five cells is under 0.1
    grades, against captum with the fewest of 64, 128, ... steps that do as well."""
    places = {name: os.environ.get(f"CERVIX_{name.upper()}") for name in ("run", "data")}
    if not all(places.values()):
        print("  left out: needs CERVIX_RUN=<run folder with weights> and CERVIX_DATA=<folder>")
        return []
    both = places | {"n": 5}
    sides = {"ours": ("ig_ours", both | {"steps": 16, "bound": 0.1}), "50": ("ig_captum", both)}
    results = alternate(sides, rounds)
    ours, steps = results["ours"], 64
    other = [run("ig_captum", **both, steps=steps)]
    while other[0]["largest"] > ours[0]["largest"] and steps < 512:
        steps *= 2
        other = [run("ig_captum", **both, steps=steps)]
    what = "Integrated Gradients of a trained network, delta of every image under 0.1 grades"
    rows = []
    for against, theirs in (
        (f"captum, {steps} steps", other),
        ("captum's defaults", results["50"]),
    ):
        taken = f"largest delta {ours[0]['largest']:.2g} with {ours[0]['steps']:.0f} steps an image"
        note, aim = f"{taken}, against {theirs[0]['largest']:.2g}", "" if theirs != other else "3"
        pair = {"ours": ours[: len(theirs)], "theirs": theirs}
        rows.append(rate_row(what, against, "img/s", pair, aim, note))
    return rows


def train(rounds: int) -> list[dict]:
    """Whole fits with augmentation, against stock fastai and against a bare loop."""
    rows = []
    for architecture, size in TRAINED.items():
        both = {"architecture": architecture, "size": size, "batch": 32, "n": 256}
        sides = {name: (f"train_{name}", both) for name in ("ours", "bare", "stock")}
        results = alternate(sides, rounds)
        products = [run("matrix_rate") for _ in range(3)]
        what, ours = f"training {architecture} {size} px", rates(results["ours"])
        for name, (against, aim) in OTHERS.items():
            rows.append(row(what, against, "img/s", ours, rates(results[name]), aim))
        used, best = ([r["tflops"] for r in some] for some in (results["bare"], products))
        used, best = [statistics.median(used)], [statistics.median(best)]
        product = f"2048^3 product in {products[0]['precision']}"
        words = f"matrix rate in the bare loop, {architecture}", product, "TFLOP/s"
        rows.append(row(*words, used, best))
    return rows


def gpu(rounds: int) -> list[dict]:
    """Whole fits on a GPU, once, against stock fastai and a bare captured loop: under 4 minutes."""
    if not torch.cuda.is_available():
        print("  left out: PyTorch sees no CUDA GPU")
        return []
    rows = []
    for architecture, size in ON_GPU:
        one = {"architecture": architecture, "size": size, "batch": 32, "n": 672}
        fit = one | {"epochs": 12}
        sides = {"ours": ("train_ours", fit), "bare": ("train_bare", one | {"n": 8064})}
        sides |= {
            name: ("train_stock", fit | {"half": name == "to_fp16"})
            for name in ("float32", "to_fp16")
        }
        results = alternate(sides, min(rounds, 1))
        busy = statistics.median(result["busy"] or 0 for result in results["ours"])
        what = f"training {architecture} {size} px on a GPU, batches of 32"
        for name, (against, aim) in GPU_OTHERS.items():
            pair, note = {"ours": results["ours"], name: results[name]}, f"GPU busy {busy:.0f} %"
            rows.append(rate_row(what, against, "img/s", pair, aim, note))
    return rows


def large(rounds: int) -> list[dict]:
    """First epoch from 200 JPEGs of 12 megapixels."""
    folder, rows = large_photographs(), []
    for network, words in ((False, "reading alone"), (True, "ResNet-50, 224 px")):
        both = {"folder": folder, "size": 224, "network": network}
        sides = {name: (f"epoch_{name}", both) for name in ("ours", "stock")}
        results = alternate(sides, rounds)
        second = statistics.median(result["second"] for result in results["ours"])
        what, note = f"first epoch of 12-megapixel JPEGs, {words}", f"second epoch {second:.1f} s"
        rows.append(rate_row(what, "stock fastai", "img/s", results, "8", note))
    return rows


def memory(rounds: int) -> list[dict]:
    """Anonymous memory while training over more and more photographs."""
    both = {"folder": many_photographs(), "size": 224}
    few, many = (run("memory_of_training", **both, n=n) for n in (1000, 8215))
    note = f"decoded data {few['data_mb']:.0f} and {many['data_mb']:.0f} MB"
    words = "peak memory, 8215 photographs at 224 px", "1000 photographs", "MB"
    return [row(*words, [many["peak_mb"]], [few["peak_mb"]], "1", note)]


def quantities() -> list[tuple[str, str, str, list[int], dict]]:
    """What grows in ``curves``: in words, the side, its argument that grows, values, the others."""
    epoch, train, memory = "one epoch of ResNet-50", "train_ours", "memory_of_training"
    resnet = {"architecture": "resnet50", "batch": 16}
    small, pictures = resnet | {"size": 64}, {"folder": many_photographs(), "size": 224}
    few, alike = {"n": 3000}, "groups and folds"
    hashes, images = [3000, 10_000, 30_000, 100_000], [1000, 3000, 10_000, 30_000]
    sides, passes = [64, 96, 128, 192, 256], [1000, 2000, 4000, 8000]
    return [
        (f"images, {epoch} at 64 px", train, "n", [128, 256, 512, 1024], small),
        (f"side in pixels, {epoch}", train, "size", sides, resnet | {"n": 64}),
        (f"classes, {epoch} at 64 px", train, "classes", [3, 30, 300, 3000], small | {"n": 128}),
        ("images, decoding and one pass at 224 px", memory, "n", passes, pictures),
        ("hashes, near-duplicates", "groups_ours", "n", hashes, {}),
        (f"images, {alike}", "split_folds", "n", images, {"folds": 4}),
        (f"folds, {alike} of 3000 images", "split_folds", "folds", [2, 4, 8, 16], few),
    ]


def curves(rounds: int) -> list[dict]:
    """How seconds grow: one row a quantity, the exponent fitted over its range."""
    return grow(quantities(), "curves")


def scale(rounds: int) -> list[dict]:
    """How seconds and memory of the steps grow in which all rows of a table take part."""
    sizes = [1000, 3000, 10_000, 30_000, 100_000]
    ranges = dict.fromkeys(["near_duplicates", "with_groups", "assign_parts"], sizes)
    ranges |= {"bootstrap": sizes[:4], "bootstrap_of_ranks": sizes[:3]}  # 1 to 5 GB
    return grow([(f"rows, {s}", "step_of", "n", ranges[s], {"step": s}) for s in ranges], "scale")


def grow(asked: list[tuple[str, str, str, list[int], dict]], name: str) -> list[dict]:
    """Rows of quantities that grow; every point goes to results/<machine>-<name>.csv."""
    rows, points = [], []
    for what, side, argument, values, others in asked:
        results = [run(side, **others, **{argument: value}) for value in values]
        seconds = [result["seconds"] for result in results]
        for value, result in zip(values, results):
            point = {"what": what, "x": value, "seconds": result["seconds"]}
            points.append(point | {"memory_mb": result.get("peak_mb")})
        exponent = np.polyfit(np.log(values), np.log(seconds), 1)[0]
        words = f"cost of {what}", f"{values[-1]:,} against {values[0]:,}", "s"
        rows.append(row(*words, seconds[-1:], seconds[:1], "", f"exponent {exponent:.2f}"))
    table = pd.DataFrame(points).round(4)
    table.to_csv(RESULTS / f"{machine_name()}-{name}.csv", index=False)
    return rows


def accuracy(rounds: int) -> list[dict]:
    """The same fold with and without each shortcut: results/<machine>-accuracy.csv. Real images
    where CERVIX_DATA is set."""
    ways = ["as shipped", "float32", "norms not folded", "JPEG decoded whole"]
    if learners.pick_precision("auto", "cpu") == "float32":
        ways.remove("float32")  # that is what is shipped here
    found = []
    for data in filter(None, ("demo", os.environ.get("CERVIX_DATA"))):
        real = data != "demo"
        weights = os.environ.get("CERVIX_WEIGHTS", "none") if real else "none"
        for task, some in (("herlev", ways[:-1]), ("colposcopy", ways)):  # cells are no JPEGs
            for way in some:
                result = run("accuracy_of", data=data, task=task, weights=weights, way=way)
                line = {"data": "real" if real else "demo", "task": task, "way": way}
                for name, value in result["numbers"].items():
                    line[name] = "{value:.3f} ({low:.3f} to {high:.3f})".format_map(value)
                found.append(line | {"seconds": round(result["seconds"], 1)})
    table = pd.DataFrame(found)
    table.to_csv(RESULTS / f"{machine_name()}-accuracy.csv", index=False)
    print(table.to_string(index=False), flush=True)
    return []


def reports(rounds: int) -> list[dict]:
    """`make reports` on the demo from nothing, and again with nothing changed."""
    places = {"CERVIX_CACHE": "demo-cache", "CERVIX_REPORTS": "demo-reports"}
    variables = {name: str(SCRATCH / folder) for name, folder in places.items()}
    first, second = (timed(["make", "reports"], **variables) for _ in range(2))
    words = "make reports (demo), second call", "first call", "s"
    return [row(*words, [second], [first], "15 s; 240 s")]


FUNCTIONS = [imports, groups, reading, predict, explain, bounded, train, gpu, large, memory]
FUNCTIONS += [curves, scale, accuracy]
SUITE = {suite.__name__: suite for suite in FUNCTIONS} | {"demo": reports}


def machine_name() -> str:
    """Processor with PyTorch's vector instructions and cores (or GPU), as part of a file name."""
    name, about = platform.machine(), Path("/proc/cpuinfo")
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
    elif about.exists():
        model = re.search(r"model name\s*: (.*)", about.read_text())[1]
        name = f"{model} {torch.backends.cpu.get_cpu_capability()}"
    return re.sub(r"\W+", "-", f"{name} {os.cpu_count()} cores").strip("-").lower()


def read(file: Path) -> pd.DataFrame:
    """The table of earlier results, without rows where there is none."""
    if not file.exists():
        return pd.DataFrame(columns=["suite"])
    return pd.read_csv(file, dtype={"aim": str}, keep_default_na=False)


def plot(table: pd.DataFrame, file: Path) -> None:
    """Each ratio with its range; the line says equal."""
    shown = table[table["aim"].astype(str).str.fullmatch(r"[\d.]+")].iloc[::-1]
    if shown.empty:
        return
    fig, ax = plt.subplots(figsize=(9, 0.34 * len(shown) + 1), layout="constrained")
    y = np.arange(len(shown))
    ax.hlines(y, shown["low"], shown["high"], color="#4477AA", lw=2)
    ax.plot(shown["ratio"], y, "o", color="#4477AA", label="measured (median, range)")
    aims = shown["aim"].astype(float)
    ax.plot(aims, y, "|", color="#AA3377", ms=12, mew=2, label="aim")
    ax.axvline(1, color="grey", lw=0.8)
    labels = shown["what"] + "  /  " + shown["against"]
    ax.set(xscale="log", xlabel="ours / other", yticks=y, yticklabels=labels)
    ax.legend(frameon=False, loc="lower right")
    fig.savefig(file, metadata={"Date": None})


def main(names: list[str], rounds: int) -> None:
    """Run some comparisons; their rows replace those in the table of this machine."""
    file, order = RESULTS / f"{machine_name()}.csv", list(SUITE)
    stamp = {"date": datetime.date.today().isoformat()}
    stamp |= {name: version(name) for name in ("torch", "fastai")}
    for folder in (SCRATCH, RESULTS):
        folder.mkdir(exist_ok=True)
    for name in names:
        print(name, flush=True)
        fresh = pd.DataFrame(SUITE[name](rounds)).assign(suite=name, **stamp)
        if fresh.empty:
            continue
        print(fresh[SHOWN].to_string(index=False), flush=True)
        kept = read(file)
        table = pd.concat([fresh, kept[kept["suite"] != name]])
        table = table.sort_values("suite", key=lambda some: some.map(order.index), kind="stable")
        table.to_csv(file, index=False)
        plot(table, file.with_suffix(".svg"))
        print(file)


if __name__ == "__main__":
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("benchmarks", description=__doc__, formatter_class=raw)
    parser.add_argument("names", nargs="*", choices=[*SUITE, []], help="which comparisons (all)")
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    main(asked.names or list(SUITE), asked.rounds)
