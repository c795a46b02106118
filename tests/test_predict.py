"""Finding pictures and streaming results, with a model that calls bright pixels lesion."""

import io
import itertools
import json
import sys
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ulvm import predict as module
from ulvm.errors import InputError
from ulvm.image import draw_overlay, paint_caption, write_png
from ulvm.predict import Prediction, Source, caption, find_images, predict_files
from ulvm.segmenter import Segmenter
from ulvm.spec import DataSpec, ModelSpec, RunSpec

SIZE = 32
RANDOM = np.random.default_rng(0)


def brightness(images_rgb: np.ndarray) -> np.ndarray:
    """Stands for a network: probability = mean of the channels / 255."""
    mean: np.ndarray = images_rgb.mean(axis=3, dtype=np.float32)
    return mean[:, None] / 255


@pytest.fixture
def segmenter() -> Segmenter:
    return Segmenter(brightness, RunSpec(data=DataSpec(image_size=SIZE)), {})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def draw(path: str | Path, seed: int = 0) -> np.ndarray:
    """Save a picture of the network's size, so that its mask is known exactly."""
    picture = np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path, "PNG")  # whatever the ending
    return picture


def lesion(picture: np.ndarray) -> np.ndarray:
    mask: np.ndarray = picture.mean(axis=2) >= 127.5
    return mask


def names(sources: list[Source]) -> list[str]:
    return [Path(source.name).as_posix() for source in sources]


def stored(path: Path | None) -> np.ndarray:
    assert path is not None
    with Image.open(path) as image:
        return np.asarray(image)


# Finding


def test_find_files_folders_and_patterns(folder: Path) -> None:
    for name in (
        "p/b.png",
        "p/a.JPG",
        "p/deep/er/c.tiff",
        "p/deep/b.webp",
        "p/.hidden.png",
        "p/.cache/d.png",
        "p/a_mask.png",
        "p/a_overlay.png",
        "p/notes.txt",
        "one.bmp",
        "q/x_mask.png",
    ):
        draw(name)
    in_p = ["p/a.JPG", "p/b.png", "p/deep/b.webp", "p/deep/er/c.tiff"]
    assert names(find_images(["p"])) == in_p
    assert names(find_images(["one.bmp", "p"])) == ["one.bmp", *in_p]
    assert names(find_images(["p/*"])) == [
        "p/a.JPG",
        "p/b.png",
        "p/deep/b.webp",
        "p/deep/er/c.tiff",
    ]
    assert names(find_images(["p/**/*.png", "*.bmp"])) == ["p/b.png", "one.bmp"]
    assert names(find_images([str(folder / "p" / "?.png")])) == [(folder / "p/b.png").as_posix()]
    assert names(find_images(["q/x_mask.png"])) == ["q/x_mask.png"]  # named on purpose
    assert find_images(["-"]) == [Source("-", Path("stdin"))]
    assert [source.error for source in find_images(["p", "-", "p/*"])] == [None] * 5


def test_each_picture_once(folder: Path) -> None:
    draw("p/a.png")
    draw("p/b.png")
    assert names(find_images(["p/b.png", "p", "./p/a.png", str(folder / "p"), "-", "-"])) == [
        "p/b.png",
        "p/a.png",
        "-",
    ]


def test_a_file_whose_name_looks_like_a_pattern(folder: Path) -> None:
    draw("a[1].png")
    draw("a1.png")
    assert names(find_images(["a[1].png"])) == ["a[1].png"]


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_pattern_does_not_walk_round_a_ring_of_links(folder: Path) -> None:
    """Two links to the top: followed 40 deep, as the system allows, they never end."""
    for name in ("p/a.png", "p/.cache/b.png", "p/q/c.png"):
        draw(name)
    for name in ("p/up", "p/round"):
        Path(name).symlink_to("..")
    for pattern in ("**/*.png", "p/**/**/*.png", "**", str(folder / "**/*.png")):
        found = [Path(name).name for name in names(find_images([pattern]))]
        assert found == ["a.png", "c.png"], pattern
    assert names(find_images(["p/.cache/**/*.png"])) == ["p/.cache/b.png"]
    assert names(find_images(["**/a**.png"])) == ["p/a.png"]


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_folder_is_searched_behind_links_but_none_twice(folder: Path) -> None:
    """Pictures behind them were passed over without a word."""
    for name in ("p/a.png", "disk/b.png", "elsewhere.png"):
        draw(name)
    for name, target in (("disk", "../disk"), ("round", "."), ("up", ".."), ("zdisk", "../disk")):
        Path("p", name).symlink_to(target)
    assert names(find_images(["p"])) == ["p/a.png", "p/disk/b.png"]


@pytest.mark.parametrize("argument", ["empty", "*.png", "none/*", ""])
def test_an_argument_that_names_no_picture(folder: Path, argument: str) -> None:
    Path("empty").mkdir()
    Path("empty/notes.txt").touch()
    draw("good.bmp")
    failed, good = find_images([argument, "good.bmp"])
    assert failed.error is not None
    assert (argument or "an empty path") in failed.error
    assert good.error is None


# Predicting


def test_masks_overlays_and_summary(folder: Path, segmenter: Segmenter) -> None:
    pictures = {
        name: draw(name, seed) for seed, name in enumerate(("a.png", "p/b.tif", "p/q/c.png"))
    }
    predictions = list(predict_files(segmenter, find_images(["a.png", "p"]), raw=True))
    out = Path("ulvm-output")
    assert [prediction.mask_path for prediction in predictions] == [
        out / "a_mask.png",
        out / "b_mask.png",
        out / "q/c_mask.png",
    ]
    for prediction, (name, picture) in zip(predictions, pictures.items(), strict=True):
        assert Path(prediction.source).as_posix() == name
        assert prediction.error is None
        assert prediction.size_hw == (SIZE, SIZE)
        mask = lesion(picture)
        np.testing.assert_array_equal(stored(prediction.mask_path), np.where(mask, 255, 0))
        words = caption(prediction.summary)
        drawn = Image.fromarray(draw_overlay(picture, mask))
        paint_caption(drawn, words)
        np.testing.assert_array_equal(stored(prediction.overlay_path), np.asarray(drawn))
        assert prediction.summary["area_pixels"] == mask.sum()
        plain = json.loads(json.dumps(prediction.to_dict()))
        assert plain["mask_path"] == str(prediction.mask_path)
        assert plain["area_fraction"] == mask.mean()


def test_options(folder: Path, segmenter: Segmenter) -> None:
    picture = draw("a.png")
    sources = find_images(["a.png"])
    (prediction,) = predict_files(
        segmenter, sources, out_dir=folder / "x" / "y", overlay=False, threshold=0.7, raw=True
    )
    assert prediction.overlay_path is None
    assert [path.name for path in (folder / "x" / "y").iterdir()] == ["a_mask.png"]
    np.testing.assert_array_equal(stored(prediction.mask_path) > 0, picture.mean(axis=2) >= 178.5)
    assert prediction.summary["threshold"] == 0.7
    assert prediction.to_dict()["overlay_path"] is None


def test_caller_mistakes_are_raised_at_once(folder: Path, segmenter: Segmenter) -> None:
    sources = [Source("a.png", Path("a"))]
    with pytest.raises(InputError, match="threshold=2"):
        predict_files(segmenter, sources, threshold=2)
    Path("file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        predict_files(segmenter, sources, out_dir="file")


def test_bad_files_do_not_stop_the_others(folder: Path, segmenter: Segmenter) -> None:
    draw("a.png")
    draw("d.png")
    Path("b.png").write_bytes(Path("a.png").read_bytes()[:200])
    Path("c.png").write_text("No picture found at")
    arguments = ["a.png", "b.png", "c.png", "missing.png", "none*", "d.png"]
    predictions = list(predict_files(segmenter, find_images(arguments)))
    assert [prediction.source for prediction in predictions] == arguments
    assert [prediction.error is None for prediction in predictions] == [True, *[False] * 4, True]
    for prediction, words in zip(
        predictions[1:5],
        ("damaged", "not a picture", "File not found", "No picture found at"),
        strict=True,
    ):
        assert prediction.error is not None
        assert words in prediction.error
        assert prediction.source in prediction.error
        assert prediction.to_dict() == {
            "source": prediction.source,
            "mask_path": None,
            "overlay_path": None,
            "dicom_paths": [],
            "error": prediction.error,
        }
        assert prediction.size_hw is None


def test_a_picture_beyond_memory_does_not_stop_the_others(
    folder: Path, segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw("a.png")
    draw("b.png")
    read = module.read_picture

    def read_or_fail(source: Any, before: Any) -> Any:
        if source == "a.png":
            raise MemoryError
        return read(source, before)

    monkeypatch.setattr(module, "read_picture", read_or_fail)
    first, second = predict_files(segmenter, find_images(["a.png", "b.png"]))
    assert first.error == "a.png does not fit into memory."
    assert second.error is None


def test_an_unforeseen_error_does_not_stop_the_others(
    folder: Path, segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.png", "b.png"):
        draw(name)
    read = module.read_picture

    def read_or_fail(source: Any, before: Any) -> Any:
        if source == "a.png":
            raise RuntimeError("made\nup")
        return read(source, before)

    monkeypatch.setattr(module, "read_picture", read_or_fail)
    first, second = predict_files(segmenter, find_images(["a.png", "b.png"]))
    assert first.error == "a.png cannot be segmented (RuntimeError: made\\x0aup)."
    assert second.error is None


def test_standard_input(
    folder: Path, segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = draw("a.png")

    class Input:
        buffer = io.BytesIO(Path("a.png").read_bytes())

    monkeypatch.setattr(sys, "stdin", Input)
    (prediction,) = predict_files(segmenter, find_images(["-"]), raw=True)
    assert prediction.source == "-"
    assert prediction.mask_path == Path("ulvm-output/stdin_mask.png")
    np.testing.assert_array_equal(stored(prediction.mask_path) > 0, lesion(picture))


def test_a_closed_standard_input_is_one_sentence(
    folder: Path, segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", None)  # as Python has it after `<&-`
    (prediction,) = predict_files(segmenter, find_images(["-"]))
    assert prediction.error == ("Standard input is closed. Name a file, or give one after <.")


def test_equal_names_do_not_overwrite_each_other(folder: Path, segmenter: Segmenter) -> None:
    files = ["p/a.png", "q/a.png", "p/a.bmp", "q/a-2.png", "r/A.png", "r/a.b.png", "r/a.c.png"]
    pictures = [draw(name, seed) for seed, name in enumerate(files)]
    predictions = list(predict_files(segmenter, find_images(files), raw=True))
    stems = [str(prediction.mask_path)[len("ulvm-output/") :] for prediction in predictions]
    assert stems == [
        "a_mask.png",
        "a-2_mask.png",
        "a-3_mask.png",
        "a-2-2_mask.png",
        "A-4_mask.png",
        "a.b_mask.png",
        "a.c_mask.png",
    ]
    for picture, prediction in zip(pictures, predictions, strict=True):
        np.testing.assert_array_equal(stored(prediction.mask_path) > 0, lesion(picture))
    again = list(predict_files(segmenter, find_images(files), raw=True))
    assert [each.mask_path for each in again] == [each.mask_path for each in predictions]
    assert not any(each.error for each in again)


def test_what_ulvm_did_not_write_stays(folder: Path, segmenter: Segmenter) -> None:
    draw("a.png")
    Path("b.png").write_bytes(Path("a.png").read_bytes())
    draw("a_mask.png", 7)  # someone's ground truth, beside the picture
    truth = Path("a_mask.png").read_bytes()
    first, second = predict_files(segmenter, find_images(["a.png", "b.png"]), out_dir=".")
    assert first.error is not None
    assert "a_mask.png is in the way" in first.error
    assert Path("a_mask.png").read_bytes() == truth
    assert not Path("a_overlay.png").exists()
    assert second.error is None
    Path("b_overlay.png").unlink()
    Path("b_overlay.png").mkdir()
    (third,) = predict_files(segmenter, find_images(["b.png"]), out_dir=".")
    assert third.error is not None


def test_an_input_is_never_overwritten_even_if_ulvm_wrote_it(
    folder: Path, segmenter: Segmenter
) -> None:
    draw("a.png")
    write_png("a_mask.png", draw("other.png"))
    before = Path("a_mask.png").read_bytes()
    arguments = ["a.png", str(folder / "a_mask.png")]
    first, second = predict_files(segmenter, find_images(arguments), out_dir=folder)
    assert first.error is not None
    assert second.mask_path == folder / "a_mask_mask.png"
    assert Path("a_mask.png").read_bytes() == before


def test_a_second_run_over_its_own_output_folder_finds_the_same_pictures(
    folder: Path, segmenter: Segmenter
) -> None:
    draw("p/a.png")
    for _ in range(2):
        (prediction,) = predict_files(segmenter, find_images(["."]), out_dir="p")
        assert prediction.error is None


def test_several_classes_write_labels(folder: Path) -> None:
    def by_channel(images_rgb: np.ndarray) -> np.ndarray:
        return images_rgb.transpose(0, 3, 1, 2).astype(np.float32) / 255

    run = RunSpec(model=ModelSpec(classes=3), data=DataSpec(image_size=SIZE))
    picture = draw("a.png")
    (prediction,) = predict_files(Segmenter(by_channel, run, {}), find_images(["a.png"]))
    np.testing.assert_array_equal(stored(prediction.mask_path), picture.argmax(axis=2))


def test_streams_in_order_with_bounded_work(
    folder: Path, segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At any moment only a few pictures more than were taken have been read."""
    for index in range(60):
        draw(f"p/{index:02}.png", index)
    read, slow = module.read_picture, threading.Event()
    started = itertools.count(1)
    counts = [0]

    def counting(source: Any, before: Any) -> Any:
        counts[0] = next(started)
        slow.wait(0.002 * (int(Path(source).stem) % 3))  # later ones would overtake
        return read(source, before)

    monkeypatch.setattr(module, "read_picture", counting)
    predictions: list[Prediction] = []
    for prediction in predict_files(segmenter, find_images(["p"]), overlay=False):
        predictions.append(prediction)
        assert counts[0] <= len(predictions) + 2 * module.MAX_WORKERS + 1
    assert [Path(each.source).stem for each in predictions] == [f"{n:02}" for n in range(60)]


def test_pictures_are_read_while_the_model_is_opened(
    folder: Path, segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw("a.png")
    model: Future[Segmenter] = Future()
    read = module.read_picture

    def then_open(source: Any, before: Any) -> Any:
        model.set_result(segmenter)  # never, if reading waited for the model
        return read(source, before)

    monkeypatch.setattr(module, "read_picture", then_open)
    (prediction,) = predict_files(model, find_images(["a.png"]))
    assert prediction.error is None


def test_a_model_that_cannot_be_opened_is_no_mistake_of_a_picture(
    folder: Path, segmenter: Segmenter
) -> None:
    draw("a.png")
    model: Future[Segmenter] = Future()
    model.set_exception(InputError("the model", "another", "choose it"))
    with pytest.raises(InputError, match="The model"):
        list(predict_files(model, find_images(["a.png"])))
    model = Future()
    model.set_result(segmenter)
    with pytest.raises(InputError, match="threshold=2"):
        list(predict_files(model, find_images(["a.png"]), threshold=2))


def test_leaving_early_stops_the_work(
    folder: Path, segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(40):
        draw(f"p/{index:02}.png", index)
    read, begun = module.read_picture, []

    def first_is_quick(source: Any, before: Any) -> Any:
        begun.append(Path(source).stem)
        time.sleep(0 if begun[-1] == "00" else 0.2)
        return read(source, before)

    monkeypatch.setattr(module, "read_picture", first_is_quick)
    monkeypatch.setattr(module, "MAX_WORKERS", 2)
    predictions = predict_files(segmenter, find_images(["p"]), overlay=False)
    next(predictions)
    predictions.close()  # type: ignore[attr-defined]
    assert len(begun) <= 3  # the one taken, and one under way in each worker
    assert not [t for t in threading.enumerate() if t.name.startswith("ulvm-predict")]


def test_nothing_to_do(folder: Path, segmenter: Segmenter) -> None:
    assert list(predict_files(segmenter, [])) == []
