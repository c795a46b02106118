"""Train many runs side by side on several GPUs: teachers, then what learns from them.

    python bench/models.py plan.json --pack DIR --data isic2017=DIR --data pad-ufes=DIR …
    python bench/models.py plan.json --pack DIR --out OUT --side-by-side 8 --seconds 560

The first makes the pack, the second runs the plan from it alone, on another machine. The pack holds
each data set's JPEG files in one (``NAME.jpgs``), its masks at 256×256
(``NAME.masks.xz``) and ids, sizes and groups (``NAME.json``). The plan lists jobs:

    {"name": "s2-fold1", "preset": "skin", "set": ["train.epochs=160"], "data": ["isic2017", …],
     "weights": {"pad-ufes": 2}, "leave": [1], "teacher": "S", "teaches": "S/1", "save": true}

``leave`` names the folds (1..5) of the pictures that are not trained on: the first one is scored.
A job with ``teaches`` writes its probability of every picture of the folds that it left out;
one with ``teacher`` waits for the pictures that it trains on, and learns from those that were
predicted without them. Each job is scored twice: the average of its best epoch and of its last.
Results go to OUT/results.json after every job.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import lzma
import multiprocessing
import os
import queue
import tarfile
import time
import traceback
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from ulvm import datasets, lesion_free, synthetic
from ulvm.groups import read_groups
from ulvm.image import read_image, resize
from ulvm.metrics import Confusion, confusion, dice, pooled
from ulvm.presets import find_preset
from ulvm.spec import DataSpec, RunSpec, SourceSpec
from ulvm.splits import Split, load_split

FOLDS = 5
HELD_OUT = 0.05  # of the training pictures, to validate with
SIZE = 256


def make_pack(folder: Path, data: dict[str, str]) -> None:
    """Pack the training and validation pictures of ``skin``, and of the others what they have."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, where in data.items():
        decoded = datasets.decode(name, where, size=SIZE)
        split = load_split(name, {"ham10000": "research"}.get(name, "skin"))
        known = {*split.ids("train"), *split.ids("validation")}
        pairs = [pair for pair in decoded.pairs if pair.id in known]
        blobs = [pair.image.read_bytes() for pair in pairs]
        ids = [pair.id for pair in pairs]
        groups = Path(where) / "groups.csv"
        index = {
            "ids": ids,
            "parts": [pair.part for pair in pairs],
            "sizes": [len(blob) for blob in blobs],
            "groups": read_groups(groups, ids) if groups.is_file() else ids,
        }
        (folder / f"{name}.json").write_text(json.dumps(index))
        (folder / f"{name}.jpgs").write_bytes(b"".join(blobs))
        masks = np.asarray(decoded.masks[decoded.indices(ids)])
        (folder / f"{name}.masks.xz").write_bytes(lzma.compress(masks.tobytes(), preset=3))


def load_pack(folder: Path, name: str, size: int = SIZE) -> Any:
    """A data set of the pack, as ``datasets.decode`` gives one."""
    index = json.loads((folder / f"{name}.json").read_text())
    blob = (folder / f"{name}.jpgs").read_bytes()
    ends = np.cumsum(index["sizes"])

    def decode(row: int) -> Any:
        return resize(
            read_image(BytesIO(blob[ends[row] - index["sizes"][row] : ends[row]])), (size, size)
        )

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        images = np.stack(list(pool.map(decode, range(len(ends)))))
    masks = np.frombuffer(lzma.decompress((folder / f"{name}.masks.xz").read_bytes()), np.uint8)
    masks = masks.reshape(-1, SIZE, SIZE)
    if size != SIZE:
        masks = np.stack([resize(mask, (size, size)) for mask in masks])
    return as_decoded(folder, name, images, masks)


def as_decoded(folder: Path, name: str, images: Any, masks: Any) -> Any:
    """Arrays of a data set of the pack with its ids."""
    index = json.loads((folder / f"{name}.json").read_text())
    file = datasets.SourceFile(folder, 0, 0)
    pairs = [
        datasets.Pair(id_, part, file, file)
        for id_, part in zip(index["ids"], index["parts"], strict=True)
    ]
    return datasets.DecodedDataset(name, pairs, images, masks, folder)


def fold_of(group: str) -> int:
    """1..5, by the group's name alone, so that every run agrees."""
    return 1 + zlib.crc32(f"ulvm {group}".encode()) % FOLDS


def make_split(
    pack: Path, name: str, leave: list[int], path: Path, only: str | None = None
) -> None:
    """The split of a data set that leaves folds out; the first of them is its test part."""
    index = json.loads((pack / f"{name}.json").read_text())
    known = set(load_split(name, only).ids("train")) if only else set(index["ids"])
    parts: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for id_, group in zip(index["ids"], index["groups"], strict=True):
        if id_ not in known:
            continue
        fold = fold_of(group)
        held = zlib.crc32(f"held {group}".encode()) % 1000 < 1000 * HELD_OUT
        if fold in leave:
            if fold == leave[0]:
                parts["test"].append(id_)
        else:
            parts["validation" if held else "train"].append(id_)
    split = Split(path.stem, name, {part: tuple(ids) for part, ids in parts.items()})
    split.save(path)


def scorer(data: dict[str, Any], size: int) -> Callable[[Any, dict[str, list[str]]], Any]:
    """A function that counts a model's pixels of pictures, by the ids of each data set.

    It gives of each set the counts a picture, and of pictures without a lesion the share marked.
    """
    draw = synthetic.draw_lesion
    dark = [draw(9000 + seed, (size, size), skin_tone=("V", "VI")[seed % 2]) for seed in range(60)]
    dark_images = np.stack([each.image_rgb for each in dark])
    dark_masks = np.stack([each.mask for each in dark])
    free = lesion_free.draw_pictures(200, 77, size)

    def score(probability: Any, test_ids: dict[str, list[str]]) -> dict[str, Any]:
        def masks(images: Any) -> Any:
            return np.concatenate([probability(some)[:, 0] >= 0.5 for some in batches(images)])

        def count(images: Any, truth: Any) -> dict[str, list[int]]:
            found = confusion(masks(images), truth)
            return {name: getattr(found, name).tolist() for name in ("tp", "fp", "fn")}

        counts, crops = {}, {}
        for name, ids in test_ids.items():
            rows = data[name].indices(ids)
            images, truth = np.asarray(data[name].images[rows]), np.asarray(data[name].masks[rows])
            counts[name] = count(images, truth >= 128)
            crops[f"skin of {name}"] = lesion_free.crop_beside(images, truth, 5)
        counts["dark drawn"] = count(dark_images, dark_masks)
        crops |= {"drawn skin": free[::2], "no skin": free[1::2]}
        marked = {
            name: masks(images).mean((1, 2)).round(4).tolist()
            for name, images in crops.items()
            if len(images)
        }
        return {"counts": counts, "marked": marked}

    return score


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


def run_job(job: dict[str, Any], given: Any, decoded: dict[str, Any], score: Any) -> Any:
    """Train and score one job."""
    from ulvm.nn.checkpoint import load_probability
    from ulvm.nn.parts import write_teacher
    from ulvm.nn.train import train

    device = given.device
    folder = given.out / "runs" / job["name"]
    folder.mkdir(parents=True, exist_ok=True)
    leave = job["leave"]
    sources = []
    for name in job["data"]:
        path = str((folder / f"{name}.json").resolve())
        if name in job.get("split", {}):
            path = job["split"][name]
        else:
            make_split(given.pack, name, leave, Path(path), job.get("only"))
        weight = job.get("weights", {}).get(name, 1.0)
        sources.append(SourceSpec(dataset=name, split=path, weight=weight))
    run: RunSpec = find_preset(job["preset"]).run
    run = dataclasses.replace(
        run,
        data=DataSpec(
            dataset=sources[0].dataset,
            split=sources[0].split,
            more=tuple(sources[1:]),
            image_size=given.size,
        ),
    ).override(job.get("set", []))
    teacher = None
    if job.get("teacher"):
        teacher = folder / "teacher"
        gather_teacher(job, given, decoded, teacher)
    train(
        run,
        dict.fromkeys(job["data"], given.pack),
        folder,
        teacher_dir=teacher,
        start_from=given.pack / "lite0.pth" if run.model.network == "lite-unet" else None,
        device=device,
        progress=False,
    )
    probability, _ = load_probability(folder, device)
    last, _ = load_probability(_keep_last(folder, run), device)
    if job.get("teaches"):
        for name in job["data"]:
            ids = [id_ for id_ in decoded[name].ids if fold_by_id(given, name)[id_] in leave]
            rows = decoded[name].indices(ids)
            write_teacher(
                given.out / "teachers" / job["teaches"], name, ids,
                predict(last, decoded[name].images[rows]),
            )  # fmt: skip
        (given.out / "teachers" / job["teaches"] / "done").touch()
    if not leave:
        return {}
    tests = {
        name: [id_ for id_, fold in fold_by_id(given, name).items() if fold == leave[0]]
        for name in job["data"]
    }
    for name in job.get("outside", []):
        tests[name] = decoded[name].ids[::3]
    return {"best": score(probability, tests), "last": score(last, tests)}


def _keep_last(folder: Path, run: Any) -> Path:
    """The last average of a run's checkpoint as a weights file."""
    import torch

    from ulvm.nn.checkpoint import save_weights
    from ulvm.nn.networks import build_network

    network = build_network(run.model)
    stored = torch.load(folder / "checkpoint.pt", map_location="cpu", weights_only=True)
    network.load_state_dict(stored["averaged"])
    save_weights(folder / "last.safetensors", network, run, {"kept": "last"})
    return folder / "last.safetensors"


def fold_by_id(given: Any, name: str) -> dict[str, int]:
    """The fold of each picture."""
    index = json.loads((given.pack / f"{name}.json").read_text())
    groups = zip(index["ids"], index["groups"], strict=True)
    return {id_: fold_of(group) for id_, group in groups}


def gather_teacher(job: dict[str, Any], given: Any, decoded: Any, into: Path) -> None:
    """Of each picture, the mean of what the teachers said that trained without it and its test."""
    from ulvm.nn.parts import write_teacher

    for name in job["data"]:
        folds = fold_by_id(given, name)
        sums: dict[str, list[Any]] = {}
        for fold, places in teachers_of(job, given):
            path = next(each for place in places if (each := place / f"{name}.npz").exists())
            with np.load(path) as stored:
                for id_, values in zip(stored["ids"], stored["probability"], strict=True):
                    if folds.get(str(id_)) == fold:
                        sums.setdefault(str(id_), []).append(values)
        ids = list(sums)
        mean = [np.rint(np.mean(sums[id_], axis=0)).astype(np.uint8) for id_ in ids]
        write_teacher(into, name, ids, np.stack(mean))


def teachers_of(job: dict[str, Any], given: Any) -> list[tuple[int, list[Path]]]:
    """Each fold that a job's teachers predict, and the folders where that may lie."""
    left = job["leave"][:1]  # the tested fold: teachers that saw it are of no use
    roots = [given.out / "teachers", *([given.teachers] if given.teachers else [])]
    return [
        (fold, [root / f"{kind}-{'-'.join(map(str, sorted([*left, fold])))}" for root in roots])
        for kind in job.get("teacher", [])
        for fold in range(1, FOLDS + 1)
        if fold not in left
    ]


def ready(job: dict[str, Any], given: Any) -> bool:
    """Whether every teacher of a job is done."""
    return all(
        any((place / "done").exists() for place in places) for _, places in teachers_of(job, given)
    )


def work(gpu: str, jobs: Any, done: Any, plan: dict[str, Any], given: Any, end: float) -> None:
    """Take jobs until there are none."""
    os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    warnings.filterwarnings("ignore")
    import torch

    torch.set_num_threads(1)
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    if torch.cuda.is_available():
        import triton.experimental.gluon  # noqa: F401  two threads importing it can deadlock
    from ulvm.nn import parts

    given.device = "cuda" if torch.cuda.is_available() else "cpu"
    decoded = {}
    for name in plan["data"]:
        images = np.load(given.out / f"{name}.images.npy", mmap_mode="r")
        masks = np.load(given.out / f"{name}.masks.npy", mmap_mode="r")
        decoded[name] = as_decoded(given.pack, name, images, masks)
    parts.datasets.decode = lambda dataset, _folder, **_: decoded[dataset]  # type: ignore
    score = scorer(decoded, given.size)
    waiting: list[dict[str, Any]] = []
    while time.time() < end:
        job = next((each for each in waiting if ready(each, given)), None)
        if job:
            waiting.remove(job)
        else:
            try:
                job = jobs.get_nowait()
            except queue.Empty:
                if not waiting:
                    return
                time.sleep(1)
                continue
            if not ready(job, given):
                waiting.append(job)  # one at most, so that others can take the rest
                while not ready(job, given) and time.time() < end:
                    time.sleep(1)
                continue
        start = time.time()
        try:
            scored = run_job(job, given, decoded, score)
            done.put((job["name"], scored, time.time() - start, None))
        except Exception:
            done.put((job["name"], None, time.time() - start, traceback.format_exc()[-1500:]))


def together(scores: list[Any], name: str, size: int) -> Confusion:
    """The counts of a data set by several jobs as one."""
    tp, fp, fn = (
        np.array([count for score in scores for count in score["counts"][name][key]])
        for key in ("tp", "fp", "fn")
    )
    return Confusion(tp=tp, fp=fp, fn=fn, tn=size * size - tp - fp - fn)


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
            counts = together(scores, name, size)
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


def bundle(out: Path, jobs: list[dict[str, Any]]) -> None:
    """What is worth bringing back, in few files: weights; what the teachers said, coarser."""
    with tarfile.open(out / "weights.tar", "w") as tar:
        for job in jobs:
            path = out / "runs" / job["name"] / "last.safetensors"
            if job.get("save") and path.exists():
                tar.add(path, f"{job['name']}.safetensors")
                tar.add(path.with_name("weights.safetensors"), f"{job['name']}.best.safetensors")
                for split in path.parent.glob("*.json"):
                    tar.add(split, f"{job['name']}.{split.name}")
                tar.add(path.parent / "metrics.csv", f"{job['name']}.csv")
    with tarfile.open(out / "teachers.tar", "w") as tar:
        for folder in sorted(out.glob("teachers/*-[1-5]")):
            if folder.name.count("-") > 1:
                continue
            for path in folder.glob("*.npz"):
                with np.load(path) as stored:
                    coarse = (stored["probability"] // 17 * 17).astype(np.uint8)
                    np.savez_compressed(path, ids=stored["ids"], probability=coarse)
                tar.add(path, f"{folder.name}/{path.name}")
            tar.add(folder / "done", f"{folder.name}/done")


def main() -> None:
    """Run the plan."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("plan", type=Path)
    parser.add_argument("--pack", type=Path, required=True)
    parser.add_argument("--data", action="append", default=[], metavar="NAME=DIR")
    parser.add_argument("--out", type=Path, help="Where results go.")
    parser.add_argument("--work", type=Path, help="Where runs and decoded pictures go; else OUT.")
    parser.add_argument("--teachers", type=Path, help="Teachers of an earlier call.")
    parser.add_argument("--side-by-side", type=int, default=1, help="processes on each GPU")
    parser.add_argument("--size", type=int, default=SIZE)
    parser.add_argument("--seconds", type=float, default=1e9)
    given = parser.parse_args()
    if given.data:
        make_pack(given.pack, dict(each.split("=", 1) for each in given.data))
        return
    began = time.time()
    back, given.out = given.out, given.work or given.out
    for folder in (back, given.out):
        folder.mkdir(parents=True, exist_ok=True)
    plan, end = json.loads(given.plan.read_text()), began + given.seconds
    for name in plan["data"]:
        data = load_pack(given.pack, name, given.size)
        np.save(given.out / f"{name}.images.npy", data.images)
        np.save(given.out / f"{name}.masks.npy", data.masks)
    print(f"decoded after {time.time() - began:.0f} s", flush=True)
    gpus = int(os.popen("nvidia-smi -L 2>/dev/null | wc -l").read().strip() or 0)
    spawn = multiprocessing.get_context("spawn")
    jobs, done = spawn.Queue(), spawn.Queue()
    for job in plan["jobs"]:
        jobs.put(job)
    time.sleep(1)  # the queue's thread fills it
    workers = [
        spawn.Process(target=work, args=(str(gpu), jobs, done, plan, given, end - 20), daemon=True)
        for _ in range(given.side_by_side)
        for gpu in range(max(1, gpus))
    ]
    for worker in workers:
        worker.start()
    results: list[Any] = []
    while (
        len(results) < len(plan["jobs"])
        and time.time() < end
        and (any(worker.is_alive() for worker in workers) or not done.empty())
    ):
        try:
            results.append(done.get(timeout=2))
        except queue.Empty:
            continue
        name, _, took, problem = results[-1]
        print(f"{time.time() - began:4.0f} s: {name} took {took:.0f} s", problem or "", flush=True)
        (back / "results.json").write_text(json.dumps(results))
    print(f"{len(results)} of {len(plan['jobs'])} jobs in {time.time() - began:.0f} s")
    lines = summarise(plan, results, given.size)
    (back / "summary.txt").write_text("\n".join(lines) + "\n")
    print("\n".join(lines), flush=True)
    bundle(given.out, plan["jobs"])
    if given.out != back:
        for name in ("weights.tar", "teachers.tar"):
            (back / name).write_bytes((given.out / name).read_bytes())
    os._exit(0)


if __name__ == "__main__":
    main()
