"""Train many runs side by side on several GPUs: teachers, then what learns from them.

    python bench/models.py plan.json --data isic2017=DIR --data pad-ufes=DIR … --out OUT \\
        --side-by-side 8 --seconds 560

The plan lists jobs:

    {"name": "s2-fold1", "preset": "skin", "set": ["train.epochs=160"], "data": ["isic2017", …],
     "weights": {"pad-ufes": 2}, "leave": [1], "teacher": ["S"], "teaches": "P-1", "save": true}

``leave`` names the folds (1..5) of the pictures that are not trained on: the first one is scored.
A job with ``teaches`` writes its probability of every picture of the folds that it left out;
one with ``teacher`` waits for the pictures that it trains on, and learns from those that were
predicted without them. Each job is scored twice: the average of its best epoch and of its last.

OUT gets ``results.json`` after every job, ``weights/`` of jobs with ``save``, ``teachers/``, which
a later call finds there, and run folders, ``runs/``.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import hashlib
import itertools
import json
import multiprocessing
import shutil
import time
import traceback
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from quality import draw_lesions, pairs
from ulvm import datasets, lesion_free
from ulvm.groups import find_table_file, read_groups
from ulvm.metrics import Confusion, confusion, dice, pooled
from ulvm.nn.checkpoint import load_probability, save_weights
from ulvm.nn.distributed import choose_device, share_devices
from ulvm.nn.networks import build_network
from ulvm.nn.parent import Parent
from ulvm.nn.parts import write_teacher
from ulvm.nn.train import train
from ulvm.presets import find_preset
from ulvm.spec import DataSpec, ModelSpec, SourceSpec
from ulvm.splits import Split, load_split

FOLDS = 5
HELD_OUT = 0.05  # of the training pictures, to validate with
KEPT_AS = {
    "last.safetensors": "safetensors",
    "weights.safetensors": "best.safetensors",
    "metrics.csv": "csv",
}
Job = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Source:
    """The pictures of a data set that jobs may train with: those that ``skin`` trains with.

    Args:
        data: All that there are.
        groups: Of each of those by its id, whose it is.
    """

    data: datasets.DecodedDataset
    groups: dict[str, str]

    def ids(self, folds: list[int]) -> list[str]:
        """The pictures of these folds."""
        return [id_ for id_, group in self.groups.items() if fold_of(group) in folds]

    def pictures(self, ids: list[str]) -> tuple[Any, Any]:
        """(ids, size, size, 3), and soft masks."""
        rows = self.data.indices(ids)
        return np.asarray(self.data.images[rows]), np.asarray(self.data.masks[rows])


@functools.cache
def find_source(name: str, where: str, size: int) -> Source:
    """A data set, which is decoded once for all processes."""
    split = load_split(name, {"ham10000": "research"}.get(name, "skin"))
    ids = sorted([*split.ids("train"), *split.ids("validation")])
    table = find_table_file(Path(where), name)
    groups = read_groups(table, ids) if table else ids
    return Source(datasets.decode(name, where, size=size), dict(zip(ids, groups, strict=True)))


def fold_of(group: str) -> int:
    """1..5, by the group's name alone, so that every run agrees."""
    return 1 + zlib.crc32(f"ulvm {group}".encode()) % FOLDS


def make_split(job: Job, name: str, groups: dict[str, str], path: Path) -> None:
    """The split of a data set that leaves folds out; the first of them is its test part."""
    known = {*load_split(name, job["only"]).ids("train")} if job.get("only") else groups
    parts: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for id_, group in groups.items():
        fold = fold_of(group)
        if id_ not in known or fold in job["leave"][1:]:
            continue
        held = zlib.crc32(f"held {group}".encode()) % 1000 < 1000 * HELD_OUT
        parts["test" if fold in job["leave"] else "validation" if held else "train"].append(id_)
    Split(path.stem, name, {part: tuple(ids) for part, ids in parts.items()}).save(path)


@functools.cache
def draw(size: int) -> tuple[Any, Any, Any]:
    """Drawn lesions on dark skin, their masks, and drawn pictures without a lesion."""
    return *draw_lesions(range(9000, 9060), ("V", "VI"), size), lesion_free.draw_pictures(
        200, 77, size
    )


def score(probability: Any, tests: dict[str, tuple[Any, Any]], size: int) -> dict[str, Any]:
    """A model's pixels of each picture, and of pictures without a lesion the share marked.

    Args:
        probability: As ``load_probability`` gives it.
        tests: Pictures and soft masks by the name of their data set.
        size: Of them.
    """
    dark, dark_masks, free = draw(size)
    lesions = {name: (images, soft >= 128) for name, (images, soft) in tests.items()}
    lesions["dark drawn"] = dark, dark_masks
    bare = {
        f"skin of {name}": lesion_free.crop_beside(images, soft, 5)
        for name, (images, soft) in tests.items()
    }
    bare |= {"drawn skin": free[::2], "no skin": free[1::2]}

    def masks(images: Any) -> Any:
        return np.concatenate([probability(some)[:, 0] >= 0.5 for some in batches(images)])

    counts = {name: confusion(masks(images), truth) for name, (images, truth) in lesions.items()}
    return {
        "counts": {
            name: {kind: count.tolist() for kind, count in vars(found).items()}
            for name, found in counts.items()
        },
        "marked": {
            name: masks(images).mean((1, 2)).round(4).tolist()
            for name, images in bare.items()
            if len(images)
        },
    }


def batches(images: Any) -> list[Any]:
    """Parts of at most 64 pictures."""
    return np.array_split(images, -(-len(images) // 64))


def predict(probability: Any, images: Any) -> Any:
    """Mean probability over the four flips, uint8."""
    out = []
    for some in batches(images):
        total = 0
        for axes in ((), (1,), (2,), (1, 2)):
            flipped = probability(np.ascontiguousarray(np.flip(some, axes)))[:, 0]
            total = total + np.flip(flipped, axes)
        out.append(np.rint(total / 4 * 255).astype(np.uint8))
    return np.concatenate(out)


def run_job(job: Job, given: Any, device: str) -> dict[str, Any]:
    """Train and score one job; what is worth keeping is copied out of its folder."""
    device = str(choose_device(device))
    folder = given.out / "runs" / job["name"]
    folder.mkdir(parents=True, exist_ok=True)
    leave = job["leave"]
    names = [*job["data"], *job.get("outside", [])]
    found = {name: find_source(name, given.data[name], given.size) for name in names}
    sources = []
    for name in job["data"]:
        path = folder / f"{name}.json"
        make_split(job, name, found[name].groups, path)
        split = job.get("split", {}).get(name, str(path.resolve()))
        weight = job.get("weights", {}).get(name, 1.0)
        sources.append(SourceSpec(dataset=name, split=split, weight=weight))
    first, *more = sources
    data = DataSpec(
        dataset=first.dataset, split=first.split, more=tuple(more), image_size=given.size
    )
    run = dataclasses.replace(find_preset(job["preset"]).run, data=data)
    run = run.override(job.get("set", []))
    if job.get("teacher"):
        gather_teacher(job, given, found, folder / "teacher")
    train(
        run,
        {name: given.data[name] for name in job["data"]},
        folder,
        teacher_dir=folder / "teacher" if job.get("teacher") else None,
        parent=load_lite0(given.lite0, run.model) if run.model.network == "lite-unet" else None,
        device=device,
        progress=False,
    )
    best, _ = load_probability(folder, device)
    last, _ = load_probability(keep_last(folder, run), device)
    if job.get("teaches"):
        into = given.out / "teachers" / job["teaches"]
        for name in job["data"]:
            ids = found[name].ids(leave)
            write_teacher(into, name, ids, predict(last, found[name].pictures(ids)[0]))
        (into / "done").touch()
    if job.get("save"):
        kept = given.out / "weights"
        kept.mkdir(exist_ok=True)
        for path in (*folder.glob("*.safetensors"), *folder.glob("*.json"), folder / "metrics.csv"):
            shutil.copy(path, kept / f"{job['name']}.{KEPT_AS.get(path.name, path.name)}")
    if not leave:
        return {}
    tests = {name: found[name].ids(leave[:1]) for name in job["data"]}
    tests |= {name: list(found[name].groups)[::3] for name in job.get("outside", [])}
    pictures = {name: found[name].pictures(ids) for name, ids in tests.items()}
    return {"best": score(best, pictures, given.size), "last": score(last, pictures, given.size)}


def load_lite0(path: Path, model: ModelSpec) -> Parent:
    """The encoder that teachers start from: tensors of EfficientNet-Lite0, less its classifier."""
    stored = torch.load(path, map_location="cpu", weights_only=True)
    known = build_network(model).state_dict()
    state = {name: each for name, each in stored.items() if name in known}
    return Parent(path.name, hashlib.sha256(path.read_bytes()).hexdigest(), model, state, ())


def keep_last(folder: Path, run: Any) -> Path:
    """The last average of a run's checkpoint as a weights file."""
    network = build_network(run.model)
    stored = torch.load(folder / "checkpoint.pt", map_location="cpu", weights_only=True)
    network.load_state_dict(stored["averaged"])
    save_weights(folder / "last.safetensors", network, run, {"kept": "last"})
    return folder / "last.safetensors"


def gather_teacher(job: Job, given: Any, found: dict[str, Source], into: Path) -> None:
    """Of each picture, the mean of what the teachers said that trained without it and its test."""
    for name in job["data"]:
        groups = found[name].groups
        sums: dict[str, list[Any]] = {}
        for fold, place in teachers_of(job, given):
            with np.load(place / f"{name}.npz") as stored:
                for id_, values in zip(stored["ids"], stored["probability"], strict=True):
                    if fold_of(groups[str(id_)]) == fold:
                        sums.setdefault(str(id_), []).append(values)
        mean = [np.rint(np.mean(values, axis=0)).astype(np.uint8) for values in sums.values()]
        write_teacher(into, name, list(sums), np.stack(mean))


def teachers_of(job: Job, given: Any) -> list[tuple[int, Path]]:
    """Each fold that a job's teachers predict, and the folder with what they say of it."""
    left = job["leave"][:1]  # the tested fold: teachers that saw it are of no use
    return [
        (fold, given.out / "teachers" / f"{kind}-{'-'.join(map(str, sorted([*left, fold])))}")
        for kind in job.get("teacher", [])
        for fold in range(1, FOLDS + 1)
        if fold not in left
    ]


def is_ready(job: Job, given: Any) -> bool:
    """Whether every teacher of a job is done."""
    return all((place / "done").exists() for _, place in teachers_of(job, given))


def try_job(job: Job, given: Any, device: str) -> tuple[str, Any, float, str | None]:
    """Name, scores, seconds and what went wrong."""
    start = time.time()
    try:
        scores, problem = run_job(job, given, device), None
    except Exception:
        scores, problem = None, traceback.format_exc()[-1500:]
    return job["name"], scores, time.time() - start, problem


def prepare() -> None:
    """How each process computes."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True


def together(scores: list[Any], name: str) -> Confusion:
    """The counts of a data set by several jobs as one."""
    counts = [score["counts"][name] for score in scores]
    return Confusion(
        **{kind: np.concatenate([each[kind] for each in counts]) for kind in counts[0]}
    )


def summarise(plan: dict[str, Any], results: list[Any], size: int) -> list[str]:
    """A line for each group of jobs: folds pooled; data sets outside averaged.

    Of each data set Dice, pooled and mean, its share below .5, and that of lesions below 4 % of
    the frame.
    """
    lines = []
    groups: dict[str, list[Any]] = {}
    jobs = {job["name"]: job for job in plan["jobs"]}
    for result in results:
        if result[1]:
            groups.setdefault(jobs[result[0]]["group"], []).append(result)
    for (group, good), kept in itertools.product(groups.items(), ("best", "last")):
        scores = [result[1][kept] for result in good]
        line = f"{group} {kept}, {len(good)} x {sum(r[2] for r in good) / len(good):.0f} s"
        for name in scores[0]["counts"]:
            counts = together(scores, name)
            each, area = dice(counts), counts.tp + counts.fn
            small = each[(area > 0) & (area < 0.04 * size * size)]
            line += f" | {name} {pooled(dice)(counts):.4f} {each.mean():.4f}"
            line += f" <.5 {(each < 0.5).mean():.3f}"
            line += f" small({len(small)}) {small.sum() / max(1, len(small)):.3f}"
        for kind in scores[0]["marked"]:
            shares = [share for score in scores for share in score["marked"].get(kind, [])]
            line += f" | {kind} >1% {np.mean(np.array(shares) > 0.01):.3f}"
        lines.append(line)
    return lines


def main() -> None:
    """Run the plan: each job once its teachers are done and a GPU has room for it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("plan", type=Path)
    parser.add_argument("--data", action="append", required=True, metavar="NAME=DIR")
    parser.add_argument("--out", type=Path, required=True, help="Where results go.")
    parser.add_argument("--lite0", type=Path, help="Tensors that `lite-unet` starts from.")
    parser.add_argument("--side-by-side", type=int, default=1, help="processes on each GPU")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=1e9)
    given = parser.parse_args()
    given.data = pairs(given.data)
    given.out.mkdir(parents=True, exist_ok=True)
    began = time.time()
    plan = json.loads(given.plan.read_text())
    for name in plan["data"]:
        find_source(name, given.data[name], given.size)  # once, not in every process
    print(f"decoded after {time.time() - began:.0f} s", flush=True)
    free = share_devices("auto") * given.side_by_side
    waiting, running, results = list(plan["jobs"]), {}, []
    spawn = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    with spawn.Pool(len(free), prepare) as pool:
        while time.time() < began + given.seconds - 20:
            ready = [job for job in waiting if is_ready(job, given)]
            for job in ready[: len(free)]:
                waiting.remove(job)
                device = free.pop(0)
                running[pool.apply_async(try_job, (job, given, device))] = device
            if not running:
                break
            time.sleep(1)
            for result in [each for each in running if each.ready()]:
                free.append(running.pop(result))
                results.append(result.get())
                name, _, took, problem = results[-1]
                print(f"{time.time() - began:4.0f} s: {name} took {took:.0f} s", problem or "")
                (given.out / "results.json").write_text(json.dumps(results))
    print(f"{len(results)} of {len(plan['jobs'])} jobs in {time.time() - began:.0f} s")
    lines = summarise(plan, results, given.size)
    (given.out / "summary.txt").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
