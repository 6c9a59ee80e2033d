"""Slow and obvious twins of the fast code, one row, pixel or pair at a time, for comparison."""

import math
from collections import defaultdict

import numpy as np
import pandas as pd
import torch
from PIL import Image
from scipy import stats
from sklearn import metrics as sk


def class_names(predictions: pd.DataFrame) -> list[str]:
    return [name[2:] for name in predictions.columns if name[:2] == "p_"]


def is_regression(predictions: pd.DataFrame) -> bool:
    return bool(predictions[f"p_{class_names(predictions)[0]}"].isna().any())


def predicted(predictions: pd.DataFrame) -> list[int]:
    """The first largest probability, or the score rounded (half to even), within the scale."""
    names = class_names(predictions)
    if is_regression(predictions):
        return [min(max(round(score), 1), len(names)) - 1 for score in predictions["score"]]
    rows = [[row[f"p_{name}"] for name in names] for _, row in predictions.iterrows()]
    return [row.index(max(row)) for row in rows]


def auc(positive: list[bool], score: list[float]) -> float:
    """scikit-learn's area under the ROC curve; NaN where one side is empty."""
    return sk.roc_auc_score(positive, score) if 0 < sum(positive) < len(positive) else math.nan


def share(answers: list[bool]) -> float:
    return sum(answers) / len(answers) if answers else math.nan


def operating_points(sick: list[bool], score: list[float]) -> dict[str, float]:
    """Every threshold tried, from above the highest score to the lowest."""
    names = ["sensitivity_at_specificity_90", "specificity_at_sensitivity_95"]
    if not 0 < sum(sick) < len(sick):
        return dict.fromkeys(names, math.nan)
    points = []
    for threshold in [math.inf, *score]:
        called = [s >= threshold for s in score]
        sensitivity = share([c for c, s in zip(called, sick) if s])
        points.append((sensitivity, share([not c for c, s in zip(called, sick) if not s])))
    at = (
        max(a for a, b in points if b >= 0.9 - 1e-12),
        max(b for a, b in points if a >= 0.95 - 1e-12),
    )
    return dict(zip(names, at))


def measure(predictions: pd.DataFrame) -> dict[str, float]:
    """Every metric of a table of predictions, by scikit-learn or by hand; with scores Herlev's."""
    names = class_names(predictions)
    labels = range(len(names))
    true, guess = [names.index(label) for label in predictions["label"]], predicted(predictions)
    f1 = {"labels": labels, "zero_division": 0}
    found = {
        "accuracy": sk.accuracy_score(true, guess),
        "f1_macro": sk.f1_score(true, guess, average="macro", **f1),
        **{
            f"f1_{name}": value
            for name, value in zip(names, sk.f1_score(true, guess, average=None, **f1))
        },
    }
    regression = is_regression(predictions)
    for k, name in enumerate(names):
        score = (
            [-abs(s - (k + 1)) for s in predictions["score"]]
            if regression
            else list(predictions[f"p_{name}"])
        )
        found[f"auc_{name}"] = auc([t == k for t in true], score)
    found["auc_mean"] = sum(found[f"auc_{name}"] for name in names) / len(names)
    if not regression:
        own = [row[f"p_{row['label']}"] for _, row in predictions.iterrows()]
        found["log_loss"] = sum(-math.log(max(p, 2.0**-23)) for p in own) / len(
            own
        )  # 2^-23: float32's epsilon
        rows = [[row[f"p_{name}"] for name in names] for _, row in predictions.iterrows()]
        found["brier"] = sum(
            (p - (k == t)) ** 2 for row, t in zip(rows, true) for k, p in enumerate(row)
        ) / len(true)
        if "score" in predictions:
            found["rps"] = np.mean(
                [
                    sum((sum(row[: k + 1]) - (t <= k)) ** 2 for k in range(len(row)))
                    for row, t in zip(rows, true)
                ]
            )
    if "score" in predictions:
        score = list(predictions["score"])
        found["mse"] = sum((s - (t + 1)) ** 2 for s, t in zip(score, true)) / len(true)
        found["mae"] = sum(abs(s - (t + 1)) for s, t in zip(score, true)) / len(true)
        off = [abs(g - t) for g, t in zip(guess, true)]
        found["adjacent_accuracy"] = sum(o <= 1 for o in off) / len(off)
        found["severe_miss"] = sum(o >= 3 for o in off) / len(off)
        last = len(names) - 1
        found["cis_called_normal"] = share([g == 0 for g, t in zip(guess, true) if t == last])
        found["normal_called_cis"] = share([g == last for g, t in zip(guess, true) if t == 0])
        group = [(0, 1, 2, 2, 2)[t] for t in true], [(0, 1, 2, 2, 2)[g] for g in guess]
        found["bethesda_accuracy"] = sk.accuracy_score(*group)
        found["bethesda_f1_macro"] = sk.f1_score(
            *group, labels=[0, 1, 2], average="macro", zero_division=0
        )
        found["hsil_sensitivity"] = share([g == 2 for t, g in zip(*group) if t == 2])
        found["kappa_quadratic"] = sk.cohen_kappa_score(
            true, guess, labels=list(labels), weights="quadratic"
        )
        sick = [t > 0 for t in true]
        called = [s >= 1.5 for s in score] if regression else [g > 0 for g in guess]
        abnormal = (
            score if regression else [1 - row[f"p_{names[0]}"] for _, row in predictions.iterrows()]
        )
        found |= operating_points(sick, abnormal)
        found["binary_accuracy"] = sk.accuracy_score(sick, called)
        found["binary_f1"] = sk.f1_score(sick, called, zero_division=0)
        pairs = list(zip(sick, called))
        for name, side in (("sensitivity", True), ("specificity", False)):
            found[name] = share([call == side for s, call in pairs if s == side])
    return found


def repeated(predictions: pd.DataFrame, weights: np.ndarray) -> pd.DataFrame:
    """The table with row i written ``weights[i]`` times."""
    rows = [row for row, times in enumerate(weights) for _ in range(int(times))]
    return predictions.iloc[rows].reset_index(drop=True)


def near_duplicates(hashes: list[int], distance: int) -> set[tuple[int, int]]:
    """Pairs i < j whose hashes differ in at most ``distance`` bits."""
    n = len(hashes)
    close = lambda i, j: bin(int(hashes[i]) ^ int(hashes[j])).count("1") <= distance  # noqa: E731
    return {(i, j) for i in range(n) for j in range(i + 1, n) if close(i, j)}


def components(names: list[str], hashes: list[int], distance: int) -> set[frozenset[int]]:
    """Groups of relatives by union-find: the same name (unless empty), or near hashes."""
    parent = list(range(len(names)))

    def root(i: int) -> int:
        while parent[i] != i:
            i = parent[i]
        return i

    same = {
        (i, j) for i in range(len(names)) for j in range(i) if names[i] and names[i] == names[j]
    }
    for i, j in same | near_duplicates(hashes, distance):
        parent[root(i)] = root(j)
    groups = defaultdict(set)
    for i in range(len(names)):
        groups[root(i)].add(i)
    return set(map(frozenset, groups.values()))


def softmax(row: list[float]) -> list[float]:
    powers = [math.exp(value - max(row)) for value in row]
    return [power / sum(powers) for power in powers]


def expected_score(row: list[float]) -> float:
    return sum((k + 1) * p for k, p in enumerate(softmax(row)))


def severity_loss(row: list[float], target: int, classification: float, regression: float) -> float:
    """Paper H section 3.2.3 for one image: cross entropy, and squared error of the score."""
    score = row[0] if len(row) == 1 else expected_score(row)
    entropy = -math.log(softmax(row)[target]) if classification else 0.0
    return classification * entropy + regression * (target + 1 - score) ** 2


def mask_shares(values: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """Share of one map inside each region, and the share of the pixels that the region has."""
    region = {2: "nucleus", 3: "cytoplasm", 4: "background", 0: "unknown", 1: "unknown"}
    inside, pixels = defaultdict(float), defaultdict(int)
    for y in range(mask.shape[0]):
        for x in range(mask.shape[1]):
            inside[region[int(mask[y, x])]] += float(values[y, x])
            pixels[region[int(mask[y, x])]] += 1
    total = sum(inside.values())
    found = {}
    for name in set(region.values()):
        found[f"at_{name}"], found[f"area_{name}"] = inside[name] / total, pixels[name] / mask.size
    return found


def literal_ig(function, image: torch.Tensor, start: torch.Tensor, m: int) -> torch.Tensor:
    """Paper H section 4 as printed: (x - x') times the sum over k = 0..m of the gradient at
    x' + k/m (x - x'), times 1/m."""
    total = torch.zeros_like(image)
    for k in range(m + 1):
        point = (start + k / m * (image - start)).detach().requires_grad_()
        function(point).sum().backward()
        total = total + point.grad / m
    return (image - start) * total


def occlusion(worth: np.ndarray, side: int, stride: int) -> list[list[float]]:
    """Mean, for each pixel, of the sums of ``worth`` (s, s) in the squares over it; the last square
    stays inside."""
    size = len(worth)
    corners = [min(k, size - side) for k in range(0, size - side + stride, stride)]
    squares = {}
    for y in corners:
        for x in corners:
            squares[y, x] = float(worth[y : y + side, x : x + side].sum())

    def mean_over(row: int, column: int) -> float:
        inside = [
            value
            for (y, x), value in squares.items()
            if y <= row < y + side and x <= column < x + side
        ]
        return np.mean(inside)

    return [[mean_over(row, column) for column in range(size)] for row in range(size)]


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Correlation of ranks, ties sharing their mean rank."""
    return np.corrcoef(stats.rankdata(x), stats.rankdata(y))[0, 1]


def partial_spearman(x: np.ndarray, y: np.ndarray, held: np.ndarray) -> float:
    """Correlation of the ranks of ``x`` and ``y`` after a line through those of ``held`` is taken
    off."""
    lines = np.column_stack([np.ones(len(held)), stats.rankdata(held)])
    ranks = [stats.rankdata(values) for values in (x, y)]
    left = [rank - lines @ np.linalg.lstsq(lines, rank, rcond=None)[0] for rank in ranks]
    return stats.pearsonr(*left).statistic


def mask_features(path: str, mask: str) -> dict[str, float]:
    """Pixels of each mask index; mean and deviation of each channel in nucleus and cytoplasm."""
    picture, indices = Image.open(path).convert("RGB"), Image.open(mask)
    inside = defaultdict(list)
    for y in range(picture.height):
        for x in range(picture.width):
            inside[indices.getpixel((x, y))].append(picture.getpixel((x, y)))
    found = {f"masks_{index}": len(inside[index]) for index in range(5)}
    for name, index in (("nucleus", 2), ("cytoplasm", 3)):
        for k in range(3):
            values = [pixel[k] for pixel in inside[index]]
            mean = sum(values) / len(values)
            found[f"{name}_mean_{k}"] = mean
            found[f"{name}_std_{k}"] = math.sqrt(
                sum((value - mean) ** 2 for value in values) / len(values)
            )
    return found


def blank(picture: np.ndarray, mask: np.ndarray, region: str, grey: tuple[int, ...]) -> np.ndarray:
    """One picture (3, h, w) with a region filled, pixel by pixel: see ``controls.blank``."""
    filled, (height, width) = picture.copy(), mask.shape
    within = {"nucleus": [2], "cell": [0, 1, 2, 3], "background": [4]}[region]
    for channel in range(3):
        places = [(y, x) for y in range(height) for x in range(width) if mask[y, x] == 4]
        ground = sorted(int(picture[channel, y, x]) for y, x in places)
        middle = len(ground) // 2
        median = (ground[middle] + ground[~middle]) / 2 if ground else None
        value = grey[channel] if region == "background" or median is None else int(median)
        for y in range(height):
            for x in range(width):
                if mask[y, x] in within:
                    filled[channel, y, x] = value
    return filled
