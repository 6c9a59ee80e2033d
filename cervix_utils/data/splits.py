"""Tables -> groups of images, train / valid / test parts, and what leaks between them."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.sparse import coo_array, csgraph

from cervix_utils.data import datasets

PARTS = ["train", "valid", "test"]
BLOCK = 256  # hashes compared at a time with all others


@dataclass(frozen=True)
class Protocol:
    """A way to split. ``grouped``: whole groups stay in one part; ``sources``: images used."""

    label: str
    description: str
    grouped: bool = True
    sources: tuple[str, ...] = ()  # empty: all


RANDOM = "random and stratified, as the papers describe it; images of one group may be in two parts"
GROUPED = "whole groups of images (same slide by file name, or near-duplicates) stay in one part"
TRAIN = "photographs of `train` alone (one for each woman), grouped; `additional` is left out"
PROTOCOLS = {
    "paper": Protocol("random split", RANDOM, grouped=False),
    "grouped": Protocol("grouped split", GROUPED),
    "train_only": Protocol("grouped split of `train`", TRAIN, sources=("train",)),
}


class SplitError(ValueError):
    """The table cannot be split as asked; the message names the class and the remedy."""


def near_duplicates(phash: np.ndarray, distance: int) -> np.ndarray:
    """Pairs (n_pairs, 2) of positions i < j whose 64-bit hashes (uint64, shape (n,)) differ in at
    most ``distance`` bits, sorted. Memory: BLOCK x n hashes beside the pairs."""
    pairs = [np.empty((0, 2), dtype=int)]
    for start in range(0, len(phash), BLOCK):
        block, others = phash[start : start + BLOCK], phash[start:]
        near = np.bitwise_count(block[:, None] ^ others) <= distance
        pairs.append(np.argwhere(np.triu(near, 1)) + start)
    return np.concatenate(pairs)


def with_groups(table: pd.DataFrame, distance: int) -> pd.DataFrame:
    """``table`` with a column ``group``: connected components of images that share a
    ``name_group`` or whose hashes differ in at most ``distance`` bits.

    Labels are never looked at (the same woman can carry two labels). A group is named after the
    name group of its first image or, where names say nothing, after that image's id.
    """
    names = table["name_group"].where(table["name_group"] != "", table["id"])
    _, first, same = np.unique(names.astype(str), return_index=True, return_inverse=True)
    by_name = np.column_stack([first[same], np.arange(len(table))])
    by_hash = near_duplicates(table["phash"].to_numpy(), distance)
    edges = np.concatenate([by_name, by_hash])
    graph = coo_array((np.ones(len(edges), dtype=bool), edges.T), shape=(len(table), len(table)))
    component = pd.Series(csgraph.connected_components(graph, directed=False)[1], index=table.index)
    return table.assign(group=names.groupby(component).transform("first"))


def _refuse(table: pd.DataFrame, n_folds: int, grouped: bool) -> None:
    """Raise SplitError where a class has fewer images (or groups) than folds."""
    if n_folds > len(table):
        raise SplitError(f"{n_folds} folds, but only {len(table)} images: ask for fewer folds")
    unit, remedy = ("group", ", or a smaller phash_distance") if grouped else ("image", "")
    counts = table.groupby("label")["group" if grouped else "id"].nunique()
    for label, count in counts[counts < n_folds].items():
        need = f"{n_folds} folds need more: add images or ask for fewer folds{remedy}"
        raise SplitError(f"class '{label}' has {count} {unit}s, {need}")


def _folds(table: pd.DataFrame, grouped: bool, n_folds: int, seed: int) -> list[pd.Index]:
    """Index labels of the test part of each cross-validation fold."""
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold  # here: see _pick

    _refuse(table, n_folds, grouped)
    splitter = StratifiedGroupKFold if grouped else StratifiedKFold
    folds = splitter(n_folds, shuffle=True, random_state=seed)
    groups = table["group"] if grouped else None
    return [table.index[test] for _, test in folds.split(table, table["label"], groups)]


def _pick(table: pd.DataFrame, fraction: float, seed: int) -> pd.Index:
    """Index labels of a stratified random part of round(fraction n) images, with every class."""
    # here: scikit-learn takes 50 MB, and steps of the workflow that split nothing import this
    from sklearn.model_selection import train_test_split

    _refuse(table, 2, grouped=False)
    labels, size = table["label"], round(fraction * len(table))
    if size < labels.nunique():
        raise SplitError(f"a part of {size} of {len(table)} cannot hold every class: add images")
    part = train_test_split(table.index, test_size=size, stratify=labels, random_state=seed)[1]
    if missing := sorted(set(labels) - set(labels[part])):
        raise SplitError(f"class '{missing[0]}' has too few images for a part of {size}: add some")
    return part


def _pick_groups(table: pd.DataFrame, fraction: float, seed: int) -> pd.Index:
    """Index labels of a stratified part of whole groups, about ``fraction`` of the images.

    Where a class has fewer groups than 1 / ``fraction``, the part grows so that each class has a
    group in it.
    """
    fewest = table.groupby("label")["group"].nunique().min()
    part = _folds(table, True, max(2, min(round(1 / fraction), fewest)), seed)[0]
    if len(part) > 0.6 * len(table):
        largest = table["group"].value_counts().max()
        remedy = f"no part of {fraction:.0%} can be cut: ask for a smaller phash_distance"
        raise SplitError(f"the largest group holds {largest} of {len(table)} images, {remedy}")
    return part


def assign_parts(
    table: pd.DataFrame, task: str, protocol: str, fold: int, n_folds=4, valid_fraction=0.15, seed=0
) -> pd.DataFrame:
    """Labelled rows of ``table`` with ``part`` (train, valid or test), ``task``, ``protocol``,
    ``fold``.

    Data sets without ``test_fraction`` have ``n_folds`` cross-validation folds. The others have a
    random split of that share, repeated: ``fold`` is the number of the repetition (paper C, Table
    1: the test part of ``paper`` has round(0.3 n) images). The validation part is cut from the
    rest by the same rule; there is none where
    ``valid_fraction`` is 0. Needs ``group`` (see ``with_groups``). Raises DataError for an unknown
    task, SplitError for an unknown protocol or fold, or where a class is too small.
    """
    fraction = datasets.get(task).test_fraction
    if protocol not in PROTOCOLS:
        raise SplitError(f"unknown protocol '{protocol}': known are {', '.join(PROTOCOLS)}")
    if fold < 0 or (fraction is None and fold >= n_folds):
        raise SplitError(f"fold {fold} asked for, but folds are numbered 0 to {n_folds - 1}")
    sources, grouped = PROTOCOLS[protocol].sources, PROTOCOLS[protocol].grouped
    pick = _pick_groups if grouped else _pick
    used = (table["label"] != "") & table["source"].isin(sources or table["source"])
    table = table[used].reset_index(drop=True)
    if fraction is None:
        test = _folds(table, grouped, n_folds, seed)[fold]
    else:
        _refuse(table, round(1 / fraction), grouped)
        test = pick(table, fraction, seed + fold)
    part = pd.Series("train", index=table.index)
    part[test] = "test"
    if valid_fraction:
        part[pick(table.drop(test), valid_fraction, seed + fold)] = "valid"
    return table.assign(part=part, task=task, protocol=protocol, fold=fold)


def inner(split: pd.DataFrame, n_folds: int, seed: int = 0) -> list[pd.DataFrame]:
    """The images outside the test part of ``split`` as ``n_folds`` splits of their own.

    Each holds out another share as its ``test`` part, whole groups where the protocol says so: for
    choices that may see no image of the outer test part. SplitError where a class is too small.
    """
    inside = split[split["part"] != "test"].reset_index(drop=True)
    folds = _folds(inside, PROTOCOLS[split["protocol"].iloc[0]].grouped, n_folds, seed)
    parts = [np.where(inside.index.isin(rows), "test", "train") for rows in folds]
    return [inside.assign(part=part) for part in parts]


def permute_labels(split: pd.DataFrame, seed: int) -> pd.DataFrame:
    """``split`` with the labels of its training part, and those of its validation part, permuted.

    A network trained on it can learn pictures by heart, not what a label means: the control of
    Adebayo et al. (2018, section 3.2). Labels of the test part stay; ``severity`` is dropped.
    """
    draw, label = np.random.default_rng(seed), split["label"].to_numpy(copy=True)
    for part in ("train", "valid"):
        rows = np.flatnonzero(split["part"] == part)
        label[rows] = label[draw.permutation(rows)]
    return split.drop(columns="severity", errors="ignore").assign(label=label)


def audit(split: pd.DataFrame, distance: int) -> pd.DataFrame:
    """How much of the test part leaks: one row a kind of likeness to the training images.

    A test image leaks where an image of its group (row "same group") is in ``train`` or in
    ``valid``, which takes part in training as well: it chooses the epoch, or calibrates. This is
    the one definition in this project. Columns: match, images (of the test part), share (0..1),
    n_test.
    """
    test, named = split["part"] == "test", split["name_group"] != ""
    pairs = near_duplicates(split["phash"].to_numpy(), distance)
    pairs = np.concatenate([pairs, pairs[:, ::-1]])
    near = pairs[~test.to_numpy()[pairs[:, 1]], 0]
    matches = {
        "same file-name prefix": named & split["name_group"].isin(split["name_group"][~test]),
        f"hash within {distance} bits": np.isin(np.arange(len(split)), near),
        "same group": split["group"].isin(split["group"][~test]),
    }
    images = pd.DataFrame(matches)[test].sum().rename_axis("match").reset_index(name="images")
    return images.assign(share=images["images"] / test.sum(), n_test=int(test.sum()))
