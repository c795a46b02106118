import hashlib
import os
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from ulvm.datasets import find_pairs
from ulvm.errors import InputError
from ulvm.splits import (
    PARTS,
    Split,
    available_splits,
    choose_split,
    load_split,
    make_folds,
)

COMMITTED = [
    (dataset, name)
    for dataset in ("isic2017", "isic2018", "ph2", "pad-ufes", "ham10000")
    for name in available_splits(dataset)
]
# A published score names the split by this hash; it must never change.
HASHES = {
    ("isic2017", "official"): "9479963b158d",
    ("isic2017", "paper-permutation"): "67edb56f6d61",
    ("isic2017", "sorted"): "7e14fdf3327c",
    ("isic2018", "official"): "ec21108eda2a",
    ("isic2018", "paper-permutation"): "413abc73b751",
    ("isic2018", "sorted"): "268945149fd9",
    ("ph2", "all"): "a20674658c59",
    ("isic2017", "skin-fold1"): "0d5f49d1baf4",
    ("isic2017", "skin-fold2"): "552ea6fb6055",
    ("isic2017", "skin-fold3"): "e13d4067c9f7",
    ("isic2017", "skin-fold4"): "14f39da26808",
    ("isic2017", "skin-fold5"): "1309bb8dd585",
    ("isic2017", "skin"): "3381c9e8c806",
    ("pad-ufes", "fold1"): "c4fad71bbb92",
    ("pad-ufes", "fold2"): "e6f2a9f60755",
    ("pad-ufes", "fold3"): "4401b5abd9e8",
    ("pad-ufes", "fold4"): "d86e90e3f125",
    ("pad-ufes", "fold5"): "6d47d149a2b2",
    ("pad-ufes", "skin"): "e011574fe6f5",
    ("ham10000", "research"): "093869ab6497",
}


@dataclass(frozen=True)
class Found:
    id: str
    part: str


def sizes(split: Split) -> tuple[int, ...]:
    return tuple(len(split.parts[part]) for part in PARTS)


def test_committed_hashes():
    assert {key: load_split(*key).hash for key in COMMITTED} == HASHES


# Sizes of the paper's cut of the official training part: train, validation, test; from the authors'
# code of UltraLight VM-UNet (arXiv 2403.20035).
PAPER_SIZES = {"isic2017": (1250, 150, 600), "isic2018": (1815, 259, 520)}
PAPER_SEED = 42


def build_split(dataset, name, ids):
    """How the lists `paper-permutation` and `sorted` were made of the official training part.

    The paper cut that in the order of a folder listing that was never published;
    `paper-permutation` has the same sizes from a seeded permutation and `sorted` from id order.
    """
    ordered = sorted(ids)
    train, validation, test = PAPER_SIZES[dataset]
    if len(ordered) != train + validation + test:
        raise InputError(f"{len(ordered)} ids for the training part of {dataset}", "", "")
    if name == "paper-permutation":
        order = np.random.default_rng(PAPER_SEED).permutation(len(ordered))
        ordered = [ordered[index] for index in order]
    cuts = ordered[:train], ordered[train : train + validation], ordered[train + validation :]
    parts = {part: tuple(sorted(cut)) for part, cut in zip(PARTS, cuts, strict=True)}
    return Split(name, dataset, parts)


@pytest.mark.parametrize("dataset", ["isic2017", "isic2018"])
@pytest.mark.parametrize("name", ["paper-permutation", "sorted"])
def test_committed_lists_are_what_build_split_makes(dataset, name):
    official = load_split(dataset, "official").parts["train"]
    committed = load_split(dataset, name)
    assert build_split(dataset, name, reversed(official)) == committed
    assert set().union(*committed.parts.values()) == set(official)


def test_sizes_of_the_paper():
    for name in ("paper-permutation", "sorted"):
        assert sizes(load_split("isic2017", name)) == (1250, 150, 600)
        assert sizes(load_split("isic2018", name)) == (1815, 259, 520)
    assert sizes(load_split("isic2017", "official")) == (2000, 150, 0)
    assert sizes(load_split("ph2", "all")) == (0, 0, 200)


def test_sorted_is_cut_in_id_order_and_the_permutation_is_not():
    in_order = load_split("isic2017", "sorted").parts
    assert max(in_order["train"]) < min(in_order["validation"])
    assert max(in_order["validation"]) < min(in_order["test"])
    # A permutation spreads each part over all ids: ranks of the test part average near the middle.
    permuted = load_split("isic2017", "paper-permutation").parts
    ranks = np.searchsorted(sorted(sum(permuted.values(), ())), permuted["test"])
    assert abs(ranks.mean() - 1000) < 3 * 2000 / np.sqrt(12 * 600)


def test_build_split_refuses_an_incomplete_download():
    with pytest.raises(InputError, match="1999 ids"):
        build_split("isic2017", "sorted", [str(index) for index in range(1999)])


def test_hash_is_over_data_set_and_ids_in_any_order():
    split = Split("a", "folder", {"train": ("2", "1"), "test": ("3",)})
    canonical = '{"dataset":"folder","parts":{"test":["3"],"train":["1","2"],"validation":[]}}'
    assert split.sha256 == hashlib.sha256(canonical.encode()).hexdigest()
    assert split.hash == split.sha256[:12]
    assert Split("b", "folder", {"train": ("1", "2"), "test": ("3",)}).hash == split.hash
    assert Split("a", "folder", {"train": ("1",), "test": ("2", "3")}).hash != split.hash
    assert Split("a", "ph2", split.parts).hash != split.hash


def test_official_part_is_filled_from_the_data():
    official = load_split("isic2017", "official")
    with pytest.raises(InputError, match="Put isic2017's official test images"):
        official.ids("test")
    found = [Found("ISIC_9", "test"), Found("ISIC_8", "test"), Found("ISIC_1", "train")]
    resolved = official.resolve(found)
    assert resolved.ids("test") == ("ISIC_8", "ISIC_9")
    assert resolved.ids("train") == official.ids("train")
    listed = Split("official", "isic2017", {**official.parts, "test": ("ISIC_9", "ISIC_8")})
    assert resolved.hash == listed.hash != official.hash
    assert official.resolve(found[2:]) == official


def test_ids_refuses_empty_and_unknown_parts():
    ph2 = load_split("ph2", "all")
    assert len(ph2.ids("test")) == 200
    with pytest.raises(InputError, match=r"train part .* is empty. It has ids in test"):
        ph2.ids("train")
    with pytest.raises(InputError, match="'val' is no part"):
        ph2.ids("val")


def test_leaks_are_named():
    with pytest.raises(InputError, match=r"2 ids more than once: b \(train, test\), c \(test, t"):
        Split("own", "folder", {"train": ("a", "b"), "test": ("b", "c", "c")})
    with pytest.raises(InputError, match="part 'val'"):
        Split("own", "folder", {"val": ("a",)})


def test_save_and_load(tmp_path: Path):
    split = Split("own", "folder", {"train": ("a", "é")}, open_parts=("test",))
    split.save(tmp_path / "own.json")
    assert load_split("folder", tmp_path / "own.json") == split
    assert list(tmp_path.iterdir()) == [tmp_path / "own.json"]


def test_unknown_name():
    with pytest.raises(InputError, match=r"Did you mean 'paper-permutation'\?"):
        load_split("isic2017", "paper-permutaton")
    with pytest.raises(InputError, match=r"no committed splits\. Name the \.json file"):
        load_split("folder", "official")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "no lists of ids"),
        ('{"parts": {"train": [1]}}', "no lists of ids"),
        ('{"parts": {"train": ["a"], "test": ["a"]}}', "a \\(train, test\\)"),
        ('{"dataset": "ph2", "parts": {"train": ["a"]}}', "is a split of ph2"),
    ],
)
def test_unusable_files(tmp_path: Path, text: str, message: str):
    path = tmp_path / "own.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        load_split("folder", path)


def test_a_name_that_would_write_to_the_terminal(tmp_path: Path):
    path = tmp_path / "s.json"
    path.write_text('{"name": "a\\u001b[2J\\nb", "parts": {"test": ["x"]}}')
    assert load_split("folder", path).name == r"a\x1b[2J\x0ab"


def test_missing_file(tmp_path: Path):
    with pytest.raises(InputError, match=r"none\.json\. A split is"):
        load_split("folder", tmp_path / "none.json")


def test_folds_test_each_id_once():
    ids = [f"p{index:03}" for index in range(103)]
    splits = make_folds(ids, folds=5, seed=0)
    assert sorted(sum((split.parts["test"] for split in splits), ())) == ids
    for split, following in pairwise([*splits, splits[0]]):
        assert split.parts["validation"] == following.parts["test"]
        assert sorted(sum(split.parts.values(), ())) == ids
        assert 20 <= len(split.parts["test"]) <= 21
    assert splits == make_folds(ids, folds=5, seed=0)
    assert splits != make_folds(ids, folds=5, seed=1)


def test_folds_are_alike_in_lesion_area():
    sample = np.random.default_rng(0).exponential(size=200)
    areas = {f"p{index}": area for index, area in enumerate(sample)}
    splits = make_folds(list(areas), folds=4, seed=0, areas=list(areas.values()))
    limits = np.quantile(list(areas.values()), [0.2, 0.4, 0.6, 0.8])
    for split in splits:
        counts = np.bincount(np.digitize([areas[id_] for id_ in split.parts["test"]], limits))
        assert counts.tolist() == [10] * 5


def test_folds_keep_patients_whole():
    ids = [f"p{index:03}" for index in range(120)]
    patient = {id_: f"patient{index // 4}" for index, id_ in enumerate(ids)}
    areas = np.random.default_rng(1).random(120)
    splits = make_folds(ids, folds=5, seed=0, areas=areas, groups=list(patient.values()))
    for split in splits:
        patients = [{patient[id_] for id_ in split.parts[part]} for part in PARTS]
        assert sum(map(len, patients)) == len(set().union(*patients)) == 30


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"folds": 2}, "2 folds of 4 ids"),
        ({"folds": 5}, "5 folds of 4 ids"),
        ({"folds": 3, "groups": ["a", "a", "b", "b"]}, "3 folds of 2 groups"),
        ({"folds": 3, "areas": [0.1]}, "1 areas for 4 ids"),
        ({"folds": 3, "seed": -7}, "[Ss]eed=-7"),
        ({"folds": 3, "seed": 2**40}, "[Ss]eed=1099511627776"),
    ],
)
def test_folds_refuse(arguments, message):
    with pytest.raises(InputError, match=message):
        make_folds(["a", "b", "c", "d"], **{"seed": 0, **arguments})


def test_folds_refuse_an_id_twice():
    with pytest.raises(InputError, match="a"):
        make_folds(["a", "a", "b", "c", "d"], folds=3, seed=0)


@pytest.mark.data
def test_committed_ids_are_those_of_the_data():
    if "ULVM_DATA" not in os.environ:
        pytest.skip("ULVM_DATA names no folder with the real data")
    for dataset, name in [("isic2017", "official"), ("isic2018", "official"), ("ph2", "all")]:
        pairs = find_pairs(dataset, os.environ["ULVM_DATA"])
        split = load_split(dataset, name)
        for part in {pair.part for pair in pairs}:
            found = tuple(pair.id for pair in pairs if pair.part == part)
            assert found == split.parts["test" if part == "all" else part]


def test_every_picture_where_there_is_no_split():
    pairs = [Found("a", "all"), Found("b", "all")]
    for name, usual in ((None, "paper-permutation"), ("all", "own.json")):
        split = choose_split("folder", name, usual, pairs)
        assert split.ids("test") == ("a", "b")
    assert choose_split("ph2", None, "paper-permutation", []) == load_split("ph2", "all")
    kept = choose_split("isic2018", None, "paper-permutation", [])
    assert kept == load_split("isic2018", "paper-permutation")
    with pytest.raises(InputError, match="No split 'sorte'"):
        choose_split("isic2018", "sorte", "paper-permutation", [])
