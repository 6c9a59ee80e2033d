"""Tables -> groups of relatives, protocols, train / valid / test parts, and an audit of what leaks between them."""

from itertools import combinations
from math import comb

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, train_test_split

PROTOCOLS = {
    "paper": "random and stratified, as the papers describe it; relatives may stand on two sides",
    "grouped": "whole groups of relatives (same slide by file name, or near-duplicate pictures) on one side",
    "train_only": "photographs of `train` alone (one for each woman), grouped; `additional` is left out",
}
TEST_FRACTION = 0.3  # colposcopy: paper C, Table 1
PARTS = ["train", "valid", "test"]


class SplitError(ValueError):
    """The table cannot be split as asked; the message names the class and the remedy."""


def near_duplicates(phash: np.ndarray, distance: int) -> np.ndarray:
    """Pairs (n_pairs, 2) of positions i < j whose 64-bit hashes (uint64, shape (n,)) differ in <= ``distance`` bits.

    Exact, without looking at all pairs (multi-index hashing, Norouzi, Punjani and Fleet, CVPR 2012): of distance + k
    chunks of bits such a pair has k in common, so only hashes that share k chunks are compared. k grows with n.
    """
    n = len(phash)
    cost = {
        k: comb(distance + k, k) * (20 * n * (k > 0) + n * n / 2 ** (64 * k / (distance + k)))
        for k in range(distance == 0, 5)
    }
    common = min(cost, key=cost.get)
    bits = np.left_shift(np.uint64(1), np.arange(64, dtype=np.uint64))
    chunks = [np.bitwise_or.reduce(bits[c :: distance + common]) for c in range(distance + common)]
    found = [np.empty(0, dtype=int)]
    for kept in combinations(chunks, common):
        shared = phash & np.bitwise_or.reduce(np.array(kept, dtype=np.uint64))
        order = np.argsort(shared)
        ordered, end = phash[order], np.searchsorted(shared[order], shared[order], side="right")
        start, step = np.arange(n), 1
        while len(start := start[end[start] > start + step]):  # each with the one `step` further on
            close = start[np.bitwise_count(ordered[start] ^ ordered[start + step]) <= distance]
            pair = np.sort([order[close], order[close + step]], axis=0)
            found.append(pair[0] * n + pair[1])
            step += 1
    return np.column_stack(np.divmod(np.unique(np.concatenate(found)), max(n, 1)))


def with_groups(table: pd.DataFrame, distance: int) -> pd.DataFrame:
    """``table`` with a column ``group``: connected components of same ``name_group`` or near-duplicate hashes.

    Labels are never looked at (the same woman can carry two labels). A group is named after its first id's name group
    or, where names say nothing, after its first id.
    """
    names = pd.factorize(table["name_group"].where(table["name_group"] != "", table["id"]))[0]
    _, first = np.unique(names, return_index=True)
    edges = np.concatenate(
        [
            np.column_stack([first[names], np.arange(len(table))]),
            near_duplicates(table["phash"].to_numpy(), distance),
        ]
    )
    graph = coo_array((np.ones(len(edges), dtype=bool), edges.T), shape=(len(table), len(table)))
    component = pd.Series(connected_components(graph, directed=False)[1], index=table.index)
    label = table["name_group"].where(table["name_group"] != "", table["id"])
    return table.assign(group=label.groupby(component).transform("first"))


def _refuse(table: pd.DataFrame, n_folds: int, grouped: bool) -> None:
    """Raise SplitError where a class has fewer images (or groups) than folds."""
    if n_folds > len(table):
        raise SplitError(f"{n_folds} folds asked for, but there are only {len(table)} images: ask for fewer folds")
    counts = table.groupby("label")["group" if grouped else "id"].nunique()
    for label, count in counts[counts < n_folds].items():
        raise SplitError(
            f"class '{label}' has {count} {'groups of relatives' if grouped else 'images'}, fewer than the {n_folds} "
            f"folds needed: ask for fewer folds{', or a smaller phash_distance' if grouped else ''}"
        )


def _pick(table: pd.DataFrame, fraction: float, grouped: bool, seed: int) -> pd.Index:
    """Index labels of a stratified part of about ``fraction`` (exact where not grouped), whole groups if ``grouped``.

    Where a class has fewer groups than 1 / ``fraction``, the part grows so that each class has a group in it.
    Raises SplitError where one group is so large that no such part exists, or where a class would have no image.
    """
    if grouped:
        _refuse(table, 2, grouped)
        n_folds = max(2, min(round(1 / fraction), table.groupby("label")["group"].nunique().min()))
        folds = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
        part = table.index[next(folds.split(table, table["label"], table["group"]))[1]]
        if len(part) > 0.6 * len(table):
            raise SplitError(
                f"the largest group of relatives holds {table['group'].value_counts().max()} of {len(table)} images, so no "
                f"part of about {fraction:.0%} can be cut from whole groups: ask for a smaller phash_distance"
            )
        return part
    size = round(fraction * len(table))
    if size < table["label"].nunique():
        raise SplitError(
            f"a part of {size} of {len(table)} images cannot hold every class: add images or raise the share"
        )
    _refuse(table, 2, grouped)
    part = train_test_split(table.index, test_size=size, stratify=table["label"], random_state=seed)[1]
    if missing := sorted(set(table["label"]) - set(table.loc[part, "label"])):
        raise SplitError(f"class '{missing[0]}' has too few images for a part of {size} to hold one: add images")
    return part


def assign_parts(
    table: pd.DataFrame,
    task: str,
    protocol: str,
    fold: int,
    n_folds: int = 4,
    valid_fraction: float = 0.15,
    seed: int = 0,
) -> pd.DataFrame:
    """Labelled rows of ``table`` with a column ``part``: train, valid or test.

    Herlev: ``fold`` of ``n_folds`` cross-validation folds. Colposcopy: repetition ``fold`` of a 70:30 split (paper C,
    Table 1; the test part of ``paper`` has round(0.3 n) images). The validation part is cut from the training part by
    the same rule. Needs ``group`` (see ``with_groups``). Raises SplitError where a class is too small.
    """
    if protocol not in PROTOCOLS:
        raise SplitError(f"unknown protocol '{protocol}': known are {', '.join(PROTOCOLS)}")
    table = table[table["label"] != ""].reset_index(drop=True)
    if protocol == "train_only":
        table = table[table["source"] == "train"].reset_index(drop=True)
    grouped = protocol != "paper"
    if task == "herlev":
        if not 0 <= fold < n_folds:
            raise SplitError(f"fold {fold} asked for, but folds are numbered 0 to {n_folds - 1}")
        _refuse(table, n_folds, grouped)
        splitter = StratifiedGroupKFold if grouped else StratifiedKFold
        folds = splitter(n_folds, shuffle=True, random_state=seed).split(
            table, table["label"], table["group"] if grouped else None
        )
        test = table.index[[part for _, part in folds][fold]]
    else:
        _refuse(table, round(1 / TEST_FRACTION), grouped)
        test = _pick(table, TEST_FRACTION, grouped, seed + fold)
    rest = table.drop(test)
    part = pd.Series("train", index=table.index)
    part[test] = "test"
    part[_pick(rest, valid_fraction, grouped, seed + fold)] = "valid"
    return table.assign(part=part)


def permute_labels(split: pd.DataFrame, seed: int) -> pd.DataFrame:
    """``split`` with the labels of its training part, and those of its validation part, dealt out anew at random.

    A network trained on it can learn pictures by heart, not what a label means: the control of Adebayo et al. (2018,
    section 3.2). Labels of the test part stay. Columns other than ``label`` stay; ``severity`` is dropped.
    """
    draw, label = np.random.default_rng(seed), split["label"].to_numpy(copy=True)
    for part in ("train", "valid"):
        rows = np.flatnonzero(split["part"] == part)
        label[rows] = label[draw.permutation(rows)]
    return split.drop(columns="severity", errors="ignore").assign(label=label)


def straddling(split: pd.DataFrame) -> list[str]:
    """Groups that stand on more than one side of a split; empty where nothing can leak."""
    sides = split.groupby("group")["part"].nunique()
    return sorted(sides[sides > 1].index)


def audit(split: pd.DataFrame, distance: int) -> pd.DataFrame:
    """How much of the test part has a relative in the training part (train or valid): one row a kind of relative.

    Columns: relative, images (of the test part), share (0..1), n_test.
    """
    test = (split["part"] == "test").to_numpy()
    train = ~test
    named = (split["name_group"] != "").to_numpy()
    same_name = split["name_group"].isin(split["name_group"][train & named]).to_numpy() & named & test
    pairs = near_duplicates(split["phash"].to_numpy(), distance)
    pairs = np.concatenate([pairs, pairs[:, ::-1]])
    near = np.zeros(len(split), dtype=bool)
    near[pairs[train[pairs[:, 1]], 0]] = True
    group = split["group"].isin(split["group"][train]).to_numpy() & test
    kinds = {
        "same file-name prefix": same_name,
        f"hash within {distance} bits": near & test,
        "same group": group,
    }
    return pd.DataFrame(
        [
            {"relative": k, "images": int(v.sum()), "share": v.sum() / test.sum(), "n_test": int(test.sum())}
            for k, v in kinds.items()
        ]
    )
