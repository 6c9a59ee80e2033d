"""`make bench`: each comparison in turn, its sides alternating in fresh processes; results/<machine>.csv and .svg.

python -m benchmarks                     # everything, about 40 minutes on 2 cores
python -m benchmarks groups predict      # some of them; the others' rows are kept
python -m benchmarks --rounds 1 train    # a first look
"""

import argparse
import datetime
import io
import json
import math
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from PIL import Image

from cervix_utils import devices, paths, synthetic

HERE = Path(__file__).parent
MAKEFILE = {
    name: value
    for name, value in re.findall(r"^export (\w+) = (.*)$", (paths.ROOT / "Makefile").read_text(), re.MULTILINE)
    if name.startswith("MALLOC")
}
TRAINED = {"resnet101": ("herlev", 128), "resnet50": ("colposcopy", 224)}
COLUMNS = ["what", "against", "unit", "ours", "other", "ratio", "low", "high", "aim", "rounds", "note"]


def run(side: str, **arguments) -> dict:
    """One side in a fresh process; sides of ours get the environment that the Makefile gives to every command."""
    ours = "ours" in side or side in ("train_bare", "read_folder", "memory_of_training", "split_folds", "accuracy_of")
    env = os.environ | (MAKEFILE if ours else {}) | {"PYTHONWARNINGS": "ignore", "TQDM_DISABLE": "1"}
    env["CERVIX_CACHE"] = str(SCRATCH / "cache")
    command = [sys.executable, "-m", "benchmarks.sides", side, json.dumps(arguments)]
    done = subprocess.run(command, cwd=paths.ROOT, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"benchmark side {side} {arguments} failed:\n{done.stderr[-3000:]}")
    result = json.loads(done.stdout.strip().splitlines()[-1])
    print(f"  {side} {arguments if len(str(arguments)) < 200 else ''}  {result['seconds']:.3f} s", flush=True)
    return result


def alternate(sides: dict[str, tuple[str, dict]], rounds: int) -> dict[str, list[dict]]:
    """Every side once a round, in turn, so that a machine that slows down slows all of them."""
    found = {name: [] for name in sides}
    for _ in range(rounds):
        for name, (side, arguments) in sides.items():
            found[name].append(run(side, **arguments))
    return found


def rates(results: list[dict]) -> list[float]:
    return [r["work"] / r["seconds"] for r in results]


def row(
    what: str, against: str, unit: str, ours: list[float], other: list[float], aim: str = "", note: str = ""
) -> dict:
    """Medians, and the ratio ours / other pair by pair: median, smallest, largest."""
    ratio = [a / b for a, b in zip(ours, other)]
    middle = statistics.median
    numbers = {
        "ours": middle(ours),
        "other": middle(other),
        "ratio": middle(ratio),
        "low": min(ratio),
        "high": max(ratio),
    }
    return dict(what=what, against=against, unit=unit, aim=aim, rounds=len(ours), note=note) | {
        key: float(f"{value:.4g}") for key, value in numbers.items()
    }


def train(rounds: int, device: str = "auto") -> list[dict]:
    """Whole fits with augmentation, against stock fastai and against a bare loop."""
    rows = []
    for architecture, (task, size) in TRAINED.items():
        both = dict(folder="demo", task=task, architecture=architecture, size=size, batch=32, n=256, device=device)
        found = alternate(
            {"ours": ("train_ours", both), "bare": ("train_bare", both), "stock": ("train_stock", both)}, rounds
        )
        products = [run("matrix_rate", device=device) for _ in range(3)]
        peak = statistics.median(r["tflops"] for r in products)
        used = statistics.median(r["tflops"] for r in found["bare"])
        name = f"training {architecture} {size} px"
        rows += [
            row(name, "stock fastai", "img/s", rates(found["ours"]), rates(found["stock"]), "3"),
            row(name, "bare loop in memory", "img/s", rates(found["ours"]), rates(found["bare"]), "0.92"),
            row(
                f"matrix rate in the bare loop, {architecture}",
                f"2048^3 product in {products[0]['precision']}",
                "TFLOP/s",
                [used],
                [peak],
            ),
        ]
    return rows


def gpu(rounds: int) -> list[dict]:
    """Whole fits on a GPU, as shipped and compiled, against stock fastai in float32 and in its `to_fp16`."""
    if not torch.cuda.is_available():
        print("  left out: PyTorch sees no CUDA GPU")
        return []
    rows = []
    for architecture, (task, size) in TRAINED.items():
        both = dict(folder="demo", task=task, architecture=architecture, size=size, batch=64, n=8192)
        sides = {
            "as shipped": ("train_ours", both),
            "torch.compile": ("train_ours", both | {"compiled": True}),
            "float32": ("train_stock", both),
            "to_fp16": ("train_stock", both | {"half": True}),
        }
        found = alternate(sides, rounds)
        for ours in list(sides)[:2]:
            busy = statistics.median(r["busy"] or 0 for r in found[ours])
            for other, aim in (("float32", "2.5"), ("to_fp16", "1.2")):
                what = f"training {architecture} {size} px on a GPU, {ours}"
                both_rates = rates(found[ours]), rates(found[other])
                rows.append(row(what, f"stock fastai, {other}", "img/s", *both_rates, aim, f"GPU busy {busy:.0f} %"))
    return rows


def large(rounds: int) -> list[dict]:
    """First epoch from 200 JPEGs of 12 megapixels."""
    files = big_files(200)
    rows = []
    for network in (False, True):
        both = dict(files=files, size=224, network=network)
        found = alternate({"ours": ("epoch_ours", both), "stock": ("epoch_stock", both)}, rounds)
        what = "first epoch of 12-megapixel JPEGs, " + ("ResNet-50, 224 px" if network else "reading alone")
        second = [r["second"] for r in found["ours"]]
        rows.append(
            row(what, "stock fastai", "img/s", rates(found["ours"]), rates(found["stock"]), "8",
                f"second epoch {statistics.median(second):.1f} s")
        )  # fmt: skip
    return rows


def big_files(n: int) -> list[str]:
    """JPEGs of 4128 x 3096 with the grain of a camera, drawn once."""
    folder = SCRATCH / "large"
    folder.mkdir(exist_ok=True)
    small = sorted((synthetic.write_demo(SCRATCH / "drawn", 1, 2, 12) / "mobileodt").rglob("train/**/*.jpg"))
    rng = np.random.default_rng(0)
    grain = rng.normal(0, 3, (4128, 3096, 3)).astype(np.float32)
    for k in range(n):
        file = folder / f"{k}.jpg"
        if not file.exists():
            scene = Image.open(small[k % len(small)]).convert("RGB").resize((3096, 4128), Image.Resampling.BICUBIC)
            pixels = np.asarray(scene, np.float32) + np.roll(grain, int(rng.integers(4000)), axis=0)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, quality=90)
    return [str(folder / f"{k}.jpg") for k in range(n)]


def memory(rounds: int) -> list[dict]:
    """Anonymous memory while training over more and more photographs."""
    files = [
        str(f)
        for f in sorted((synthetic.write_demo(SCRATCH / "drawn", 1, 2, 12) / "mobileodt").rglob("train/**/*.jpg"))
    ]
    few, many = (run("memory_of_training", files=files, n=n, size=224) for n in (1000, 8215))
    note = f"decoded data {few['data_mb']:.0f} and {many['data_mb']:.0f} MB"
    return [
        row(
            "peak memory, 8215 photographs at 224 px",
            "1000 photographs",
            "MB",
            [many["peak_mb"]],
            [few["peak_mb"]],
            "1",
            note,
        )
    ]


def predict(rounds: int) -> list[dict]:
    both = dict(n=128, size=128)
    found = alternate({"ours": ("predict_ours", both), "other": ("predict_plain", both)}, rounds)
    return [
        row(
            "prediction with 4 flips, ResNet-101 128 px",
            "plain loop in float32",
            "img/s",
            rates(found["ours"]),
            rates(found["other"]),
            "2",
        )
    ]


def explain(rounds: int) -> list[dict]:
    """Speed at captum's 50 steps, and what bf16 (where the processor has it) does to a map: its distance from one of 400
    steps in float32."""
    both, kinds = dict(n=4, size=128), list(dict.fromkeys(["float32", devices.pick_device("cpu")[1]]))
    kept = {name: str(SCRATCH / f"{name}.npy") for name in (*kinds, "many")}
    sides = {name: ("ig_ours", both | dict(precision=name, keep=kept[name])) for name in kinds}
    found = alternate(sides | {"captum": ("ig_captum", both)}, rounds)
    run("ig_ours", **both, steps=400, keep=kept["many"])
    maps = {name: np.load(file) for name, file in kept.items()}
    deltas = {name: statistics.median(r["delta"] for r in results) for name, results in found.items()}
    rows = []
    for name in sides:
        error = abs(maps[name] - maps["many"]).sum() / abs(maps["many"]).sum()
        note = f"median delta {deltas[name]:.2g} against {deltas['captum']:.2g}; map {error:.0%} from 400 steps"
        what = f"Integrated Gradients, ResNet-101 128 px, 50 steps, {name}"
        rows.append(row(what, "captum's defaults", "img/s", rates(found[name]), rates(found["captum"]), "3", note))
    return rows


def bounded(rounds: int) -> list[dict]:
    """Integrated Gradients of a trained network (CERVIX_RUN, a run folder with its weights; CERVIX_DATA) until the delta of
    each of five cells is under 0.1 grades, against captum with the fewest of 64, 128, ... steps that do as well."""
    places = {name: os.environ.get(f"CERVIX_{name.upper()}") for name in ("run", "data")}
    if not all(places.values()):
        print("  left out: needs CERVIX_RUN=reports/<name>/runs/herlev/<pipeline>/<fold> and CERVIX_DATA=<data folder>")
        return []
    both = places | {"n": 5}
    sides = {"ours": ("ig_ours", both | {"steps": 16, "bound": 0.1}), "defaults": ("ig_captum", both)}
    found = alternate(sides, rounds)
    ours = found["ours"][0]
    for steps in (64, 128, 256, 512):
        found["captum"] = [run("ig_captum", **both, steps=steps)]
        if found["captum"][0]["largest"] <= ours["largest"]:
            break
    what = "Integrated Gradients of a trained ResNet-101, 128 px, delta of every image under 0.1 grades"
    rows = []
    for name, against, aim in (("captum", f"captum, {steps} steps", "3"), ("defaults", "captum's defaults", "")):
        other = found[name]
        note = f"largest delta {ours['largest']:.2g} with {ours['steps']:.0f} steps an image, against {other[0]['largest']:.2g}"
        rows.append(row(what, against, "img/s", rates(found["ours"])[: len(other)], rates(other), aim, note))
    return rows


def groups(rounds: int) -> list[dict]:
    found = alternate({"ours": ("groups_ours", dict(n=8215)), "other": ("groups_pairs", dict(n=8215))}, rounds)
    many = alternate({"ours": ("groups_ours", dict(n=100_000)), "other": ("groups_ours", dict(n=10_000))}, rounds)
    exponent = [math.log10(a["seconds"] / b["seconds"]) for a, b in zip(*many.values())]
    seconds = [[r["seconds"] for r in results] for results in many.values()]
    return [
        row("near-duplicates among 8215 hashes", "all pairs in Python", "images/s", rates(found["ours"]), rates(found["other"]), "50"),
        row("near-duplicates among 100 000 hashes", "10 000 hashes", "s", *seconds, "below 100", f"exponent {statistics.median(exponent):.2f}"),
    ]  # fmt: skip


def reading(rounds: int) -> list[dict]:
    """A folder of 8215 files of 512 x 512 pixels, drawn photographs with a dot each."""
    folder = SCRATCH / "many-512"
    if not folder.exists():
        small = sorted((synthetic.write_demo(SCRATCH / "drawn", 1, 2, 12) / "mobileodt").rglob("train/**/*.jpg"))
        for k in range(8215):
            file = folder / f"train/Type_{1 + k % 3}/{k}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            data = io.BytesIO()
            picture = Image.open(small[k % len(small)]).convert("RGB").resize((512, 512))
            picture.putpixel((k % 240, k // 240), (255, 0, k % 256))
            picture.save(data, "JPEG", quality=90)
            file.write_bytes(data.getvalue())
    cores = os.cpu_count()
    found = alternate(
        {name: ("read_folder", dict(folder=str(folder), cores=n)) for name, n in (("ours", cores), ("other", 1))},
        rounds,
    )
    return [
        row(
            f"reading and checking 8215 photographs, {cores} cores",
            "one core",
            "files/s",
            rates(found["ours"]),
            rates(found["other"]),
            f"near {cores}",
        )
    ]


def imports(rounds: int) -> list[dict]:
    """Seconds of each notebook's import cell, interpreter included; a first round fills the file cache."""
    cells = {"stock": "from fastai.vision.all import *"}
    for notebook in sorted(paths.NOTEBOOKS.glob("*.ipynb")):
        found = (cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code")
        cells[notebook.stem] = "".join(next(found)["source"])
    seconds = {name: [] for name in cells}
    for _ in range(rounds + 1):
        for name, code in cells.items():
            seconds[name].append(timed([sys.executable, "-W", "ignore", "-c", code]))
    against = cells["stock"]
    return [
        row(f"imports of {name}", against, "s", times[1:], seconds["stock"][1:], "0.7")
        for name, times in seconds.items()
        if name != "stock"
    ]


def timed(command: list[str], **extra) -> float:
    start = time.perf_counter()
    subprocess.run(command, cwd=paths.ROOT, check=True, capture_output=True, **extra)
    return time.perf_counter() - start


def demo(rounds: int) -> list[dict]:
    """`make reports` on the demo from nothing, and again with nothing changed."""
    env = os.environ | {"CERVIX_CACHE": str(SCRATCH / "demo-cache"), "CERVIX_REPORTS": str(SCRATCH / "demo-reports")}
    first, second = (timed(["make", "reports"], env=env) for _ in range(2))
    return [row("make reports (demo), second call", "first call", "s", [second], [first], "15 s; 360 s")]


def curves(rounds: int) -> list[dict]:
    """How seconds grow: one row a quantity, the exponent fitted over its range."""
    train = dict(folder="demo", task="colposcopy", architecture="resnet50", batch=16)
    files = [
        str(f)
        for f in sorted((synthetic.write_demo(SCRATCH / "drawn", 1, 2, 12) / "mobileodt").rglob("train/**/*.jpg"))
    ]
    quantities = {
        "images, one epoch of ResNet-50 at 64 px": ("train_ours", [128, 256, 512, 1024], lambda n: train | dict(size=64, n=n)),
        "side in pixels, one epoch of ResNet-50": ("train_ours", [64, 96, 128, 192, 256], lambda s: train | dict(size=s, n=64)),
        "classes, one epoch of ResNet-50 at 64 px": ("train_ours", [3, 30, 300, 3000], lambda k: train | dict(size=64, n=128, classes=k)),
        "images, decoding and one pass at 224 px": ("memory_of_training", [1000, 2000, 4000, 8000], lambda n: dict(files=files, n=n, size=224)),
        "hashes, near-duplicates": ("groups_ours", [3000, 10_000, 30_000, 100_000, 300_000], lambda n: dict(n=n)),
        "images, groups and folds": ("split_folds", [1000, 3000, 10_000, 30_000], lambda n: dict(n=n, folds=4)),
        "folds, groups and folds of 3000 images": ("split_folds", [2, 4, 8, 16], lambda k: dict(n=3000, folds=k)),
    }  # fmt: skip
    rows, points = [], []
    for what, (side, values, arguments) in quantities.items():
        results = [run(side, **arguments(value)) for value in values]
        seconds = [r["seconds"] for r in results]
        exponent = np.polyfit(np.log(values), np.log(seconds), 1)[0]
        points += [
            dict(what=what, x=x, seconds=s, memory_mb=r.get("peak_mb")) for x, s, r in zip(values, seconds, results)
        ]
        rows.append(
            row(
                f"cost of {what}",
                f"{values[-1]:,} against {values[0]:,}",
                "s",
                [seconds[-1]],
                [seconds[0]],
                "",
                f"exponent {exponent:.2f}",
            )
        )
    pd.DataFrame(points).round(4).to_csv(HERE / "results" / f"{machine_name()}-curves.csv", index=False)
    return rows


def accuracy(rounds: int) -> list[dict]:
    """The same fold with and without each shortcut: results/<machine>-accuracy.csv. Real images where CERVIX_DATA is set."""
    small = {"herlev": dict(size=64, epochs=6), "colposcopy": dict(size=96, epochs=4)}
    found = []
    for data in filter(None, ("demo", os.environ.get("CERVIX_DATA"))):
        weights = os.environ.get("CERVIX_WEIGHTS", "none") if data != "demo" else "none"
        for task, sizes in small.items():
            ways = {
                "as shipped": {},
                "float32": dict(precision="float32"),
                "norms not folded": dict(without="folded norms"),
            }
            if devices.pick_device("cpu")[1] == "float32":
                del ways["float32"]  # that is what is shipped here
            if task == "colposcopy":
                ways["JPEG decoded whole"] = dict(without="small JPEG decoding")
            for way, change in ways.items():
                result = run("accuracy_of", data=data, task=task, weights=weights, **sizes, **change)
                numbers = {
                    name: f"{v['value']:.3f} ({v['low']:.3f} to {v['high']:.3f})"
                    for name, v in result["numbers"].items()
                }
                place = "demo" if data == "demo" else "real"
                found.append(dict(data=place, task=task, way=way, **numbers, seconds=round(result["seconds"], 1)))
                pd.DataFrame(found).to_csv(HERE / "results" / f"{machine_name()}-accuracy.csv", index=False)
    print(pd.DataFrame(found).to_string(index=False), flush=True)
    return []


SUITE = {
    f.__name__: f
    for f in (imports, groups, reading, predict, explain, bounded, train, gpu, large, memory, curves, accuracy, demo)
}


def machine_name() -> str:
    """Processor with the vector instructions that PyTorch uses and cores (or GPU), as part of a file name."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    if not name and Path("/proc/cpuinfo").exists():
        name = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())[1]
        name = f"{name} {torch.backends.cpu.get_cpu_capability()}"
    return re.sub(r"\W+", "-", f"{name or platform.machine()} {os.cpu_count()} cores").strip("-").lower()


def plot(table: pd.DataFrame, file: Path) -> None:
    """Each ratio with its range; the line says equal."""
    shown = table[table["aim"].astype(str).str.fullmatch(r"[\d.]+")].iloc[::-1]
    fig, ax = plt.subplots(figsize=(9, 0.34 * len(shown) + 1), layout="constrained")
    y = np.arange(len(shown))
    ax.hlines(y, shown["low"], shown["high"], color="#4477AA", lw=2)
    ax.plot(shown["ratio"], y, "o", color="#4477AA", label="measured (median, range)")
    ax.plot(shown["aim"].astype(float), y, "|", color="#AA3377", ms=12, mew=2, label="aim")
    ax.axvline(1, color="grey", lw=0.8)
    ax.set(xscale="log", xlabel="ours / other", yticks=y, yticklabels=shown["what"] + "  /  " + shown["against"])
    ax.legend(frameon=False, loc="lower right")
    fig.savefig(file, metadata={"Date": None})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*SUITE, []], help="which comparisons (all)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()) / "cervix-benchmarks")
    asked = parser.parse_args()
    SCRATCH = asked.scratch
    SCRATCH.mkdir(parents=True, exist_ok=True)
    file = HERE / "results" / f"{machine_name()}.csv"
    file.parent.mkdir(exist_ok=True)
    for name in asked.names or SUITE:
        print(name, flush=True)
        fresh = pd.DataFrame(SUITE[name](asked.rounds), columns=COLUMNS).assign(
            suite=name, date=datetime.date.today().isoformat(), torch=version("torch"), fastai=version("fastai")
        )
        if fresh.empty:
            continue
        kept = pd.read_csv(file, dtype={"aim": str}, keep_default_na=False) if file.exists() else fresh.head(0)
        table = pd.concat([kept[kept["suite"] != name], fresh.astype({"aim": str})])
        table = table.sort_values("suite", key=lambda s: s.map({n: k for k, n in enumerate(SUITE)}), kind="stable")
        table.to_csv(file, index=False)
        print(fresh[["what", "against", "ours", "other", "ratio", "aim", "note"]].to_string(index=False), flush=True)
    if file.exists():
        plot(pd.read_csv(file, dtype={"aim": str}, keep_default_na=False), file.with_suffix(".svg"))
        print(file)
