"""Files that were made to break a reader: each is one sentence, and the others are done."""

import io
import os
import shutil
import struct
import subprocess
import sys
import time
import tracemalloc
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import ulvm
from ulvm import grey, limits
from ulvm.cli import main
from ulvm.datasets.find import find_pairs
from ulvm.datasets.read import MaskRules, read_pair
from ulvm.errors import InputError, PictureWarning, printable
from ulvm.image import read_image, read_mask
from ulvm.picture import read_picture
from ulvm.predict import find_images, predict_files
from ulvm.segmenter import load
from ulvm.spec import RunSpec
from ulvm.splits import load_split

PICTURE = np.arange(40 * 30 * 3, dtype=np.uint8).reshape(40, 30, 3)


def chunk(kind: bytes, content: bytes) -> bytes:
    crc = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + crc


def png(*chunks: bytes, header: bytes = b"\x08\x02\0\0\0", size: tuple[int, int] = (2, 2)) -> bytes:
    data = zlib.compress(bytes(size[1] * (1 + 3 * size[0])))
    parts = [chunk(b"IHDR", struct.pack(">II", *size) + header), *chunks, chunk(b"IDAT", data)]
    return b"\x89PNG\r\n\x1a\n" + b"".join([*parts, chunk(b"IEND", b"")])


def encode(kind: str, **options: Any) -> bytes:
    content = io.BytesIO()
    Image.fromarray(PICTURE).save(content, kind, **options)
    return content.getvalue()


def run_length_bmp(width: int, height: int, codes: bytes) -> bytes:
    """A BMP of 8 bits in run-length code."""
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(codes), 0, 0, 256, 0)
    place = 14 + len(head) + 1024
    file = b"BM" + struct.pack("<IHHI", place + len(codes), 0, 0, place) + head
    return file + bytes(1024) + codes


def refused(source: Any, *words: str) -> None:
    with pytest.raises(InputError) as caught:
        read_image(source)
    for word in words:
        assert word in str(caught.value)


# One file


def test_palette_picture_without_a_palette() -> None:
    content = png(header=b"\x08\x03\0\0\0")
    refused(content, "damaged")
    with pytest.raises(InputError, match="damaged"):
        read_mask(content)


@pytest.mark.parametrize("kind", [b"tEXt", b"zTXt", b"iTXt", b"iCCP"])
@pytest.mark.parametrize("place", ["before", "after"])
def test_large_text_is_passed_over(kind: bytes, place: str) -> None:
    text = b"a" * 70_000_000 if kind == b"tEXt" else zlib.compress(b"a" * 2_000_000)
    form = {b"tEXt": b"k\0", b"zTXt": b"k\0\0", b"iTXt": b"k\0\1\0\0\0", b"iCCP": b"k\0\0"}[kind]
    large = chunk(kind, form + text)
    whole = png()
    content = png(large) if place == "before" else whole[:-12] + large + whole[-12:]
    if kind == b"tEXt":
        refused(content, "bytes of text")
        return
    assert read_image(content).shape == (2, 2, 3)


def test_run_length_code_has_a_limit_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    content = run_length_bmp(200, 100, b"\xc8\0\0\0" * 100 + b"\0\1")
    assert read_image(content).shape == (100, 200, 3)
    monkeypatch.setattr(limits, "RUN_LENGTH_PIXELS", 19_999)
    refused(content, "100×200 pixels in a run-length code", "Up to 19,999")
    refused(run_length_bmp(2**21, 1, b"\0\2\xff\xff"), "1,048,576 on a side")


def test_jpeg_of_many_passes() -> None:
    content = encode("JPEG", progressive=True)
    assert read_image(content).shape == PICTURE.shape
    last = content.rindex(b"\xff\xda")
    pass_, end = content[last:-2], content[-2:]
    refused(content[:last] + pass_ * 200 + end, "passes", "Up to 100")


@pytest.mark.parametrize("filling", [b"\xff", b"\xff\xe0\0\2", b"\xff\xda"])
def test_a_long_jpeg_of_nothing_is_soon_refused(filling: bytes) -> None:
    content = encode("JPEG", progressive=True)
    start = time.thread_time()
    refused(content[: len(content) // 2] + filling * 300_000)
    assert time.thread_time() - start < 5


@pytest.mark.parametrize("kind", ["JPEG", "MPO"])
@pytest.mark.parametrize("colours", [1, 2])
def test_baseline_jpeg_of_many_passes(kind: str, colours: int) -> None:
    """Passes of some of the colours, in files that don't say that they are progressive."""
    options = {"save_all": True, "append_images": [Image.new("RGB", (8, 8))]}
    content = encode(kind, **(options if kind == "MPO" else {}))
    assert read_image(content).shape == PICTURE.shape
    start = content.index(b"\xff\xda")
    some = b"\xff\xda" + struct.pack(">HB", 6 + 2 * colours, colours)
    some += b"\x01\0\x02\x11"[: 2 * colours] + b"\0\x3f\0" + b"\0" * 40
    refused(content[:start] + some * 200 + content[start:], "passes", "Up to 100")


def test_a_slow_decoder_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    content = run_length_bmp(2000, 2000, b"\1\0" * 2_000_000)
    monkeypatch.setattr(limits, "PICTURE_SECONDS", 0.02)
    refused(content, "takes longer than 0.02 seconds")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_pipes_and_devices_are_not_opened(tmp_path: Path) -> None:
    pipe = tmp_path / "p.jpg"
    os.mkfifo(pipe)
    refused(pipe, "p.jpg is a pipe or a device")
    refused("/dev/zero", "is a pipe or a device")
    refused("a\0b.png", "cannot be opened")
    os.mkfifo(tmp_path / "s.json")
    with pytest.raises(InputError, match="pipe or a device"):
        load_split("folder", tmp_path / "s.json")


def test_dark_16_bit_colours_are_joined_in_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one piece 14,000 by 14,000 pixels took six gigabytes."""
    monkeypatch.setattr(grey, "BAND_ROWS", 7)
    rows = np.random.default_rng(1).integers(0, 4096, (500, 400, 3), dtype=np.uint16)
    rows[0, 0] = 4095
    data = zlib.compress(b"".join(b"\0" + row.astype(">u2").tobytes() for row in rows))
    head = chunk(b"IHDR", struct.pack(">II", 400, 500) + b"\x10\x02\0\0\0")
    content = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    tracemalloc.start()
    with pytest.warns(PictureWarning, match="12-bit"):
        picture = read_picture(content)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(np.asarray(picture), (rows * np.uint32(255) + 2047) // 4095)
    assert most < 2 * len(data)


def test_standard_input_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    class Endless:
        name = "<stdin>"

        def read(self, size: int) -> bytes:
            return bytes(size)

    monkeypatch.setattr(limits, "STREAM_BYTES", 2**22)
    refused(Endless(), "<stdin> is longer than 4,194,304 bytes")


def test_a_read_error_in_the_middle() -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        Failing().read()
    refused(Failing(), "cannot be read (Input/output error)")


# A batch


def test_bad_files_are_a_line_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "no-palette.png").write_bytes(png(header=b"\x08\x03\0\0\0"))
    (folder / f"{'n' * 249}.png").write_bytes(encode("PNG"))
    (folder / "good.png").write_bytes(encode("PNG"))
    (folder / "phone.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    (folder / "scan.dcm").write_bytes(bytes(128) + b"DICM" + bytes(50))
    (folder / "notes.txt").touch()
    if hasattr(os, "mkfifo"):
        os.mkfifo(folder / "pipe.jpg")
        (folder / "to-nothing.png").symlink_to("nowhere")
        (folder / "round.png").symlink_to("round.png")
        os.close(os.open(os.fsencode(folder) + b"/\xff\x1b[2J.png", os.O_CREAT))
    done = {each.source: each for each in predict_files(load(), find_images(["in"]))}
    assert {Path(name).name for name in done} == {
        path.name for path in folder.iterdir() if path.name != "notes.txt"
    }
    assert [name for name, each in done.items() if each.error is None] == ["in/good.png"]
    assert all(printable(each.error) == each.error for each in done.values() if each.error)
    said = " ".join(each.error or "" for each in done.values())
    for words in ("HEIC", "DICOM", "no-palette.png is damaged"):
        assert words in said


def test_any_exception_of_a_decoder_is_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.png"):
        Path(name).write_bytes(encode("PNG"))
    whole = Image.Image.convert

    def fail_once(self: Image.Image, *args: Any, **options: Any) -> Any:
        monkeypatch.setattr(Image.Image, "convert", whole)
        raise LookupError("made up")

    monkeypatch.setattr("ulvm.predict._require_replaceable", lambda *_: None)
    Image.fromarray(PICTURE).convert("L").save("a.png")
    monkeypatch.setattr(Image.Image, "convert", fail_once)
    first, second = predict_files(load(), find_images(["a.png", "b.png"]), overlay=False)
    assert first.error == (
        "a.png is damaged or of an unsupported variant (made up). Whole PNG, JPEG, TIFF, BMP, WebP "
        "and GIF files can be read. Copy it again, or open it in a picture editor and save it as "
        "PNG."
    )
    assert second.error is None


def test_workers_share_room_for_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for one picture, four workers hold one at a time."""
    monkeypatch.chdir(tmp_path)
    for index in range(8):
        Path(f"{index}.png").write_bytes(encode("PNG"))
    held, most = [0], [0]
    from ulvm import image, predict

    read, write = predict.read_picture, image.write_png

    def count(*arguments: Any) -> Any:
        picture = read(*arguments)
        held[0] += 1
        most[0] = max(most[0], held[0])
        return picture

    def release(*arguments: Any) -> None:
        write(*arguments)
        held[0] -= 1

    monkeypatch.setattr(predict, "read_picture", count)
    monkeypatch.setattr(image, "write_png", release)
    monkeypatch.setattr(limits, "PIXELS", PICTURE.size // 3)
    done = list(predict_files(load(), find_images(["*.png"]), overlay=False))
    assert [each.error for each in done] == [None] * 8
    assert most == [1]


def test_names_are_shown_escaped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = "a\x1b[31m\nError: b\u202e.png"
    Path(name).write_bytes(encode("PNG"))
    Path(f"bad{name}").write_bytes(b"?")
    said = CliRunner().invoke(main, ["predict", name, f"bad{name}", "none\x07.png"]).output
    assert "a\\x1b[31m\\x0aError: b\\u202e.png: " in said
    assert "bada\\x1b[31m" in said
    assert "none\\x07.png" in said
    assert not set(said) & {"\x1b", "\x07", "\u202e"}
    assert printable("Ω é 皮膚 \u3000 \udcff") == "Ω é 皮膚 \u3000 \\xff"


def test_what_pillow_says_of_metadata_is_not_shown(tmp_path: Path) -> None:
    """A tag that leads out of the file is no concern of whoever outlines the picture."""
    Image.fromarray(PICTURE).save(tmp_path / "a.tif", dpi=(72, 72))
    content = (tmp_path / "a.tif").read_bytes()
    field = struct.pack("<HHI", 282, 5, 1)  # the width's resolution, by its place in the file
    start = content.index(field) + len(field)
    (tmp_path / "a.tif").write_bytes(content[:start] + b"\xff\xff\xff\x7f" + content[start + 4 :])
    with pytest.warns(UserWarning, match="Truncated File Read"):
        read_image(tmp_path / "a.tif")
    done = CliRunner().invoke(main, ["predict", str(tmp_path / "a.tif"), "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert not done.stderr


def test_a_name_that_gets_too_long_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(f"{'m' * 248}.png").write_bytes(encode("PNG"))
    (done,) = predict_files(load(), find_images(["*.png"]))
    assert done.error is not None
    assert done.error.endswith(
        "_mask.png cannot be written (File name too long). Choose a shorter name."
    )


# Zip files


def zipped(folder: Path, method: int = zipfile.ZIP_DEFLATED) -> tuple[Path, bytes]:
    """A data set with its pictures in a zip, and the zip's bytes."""
    (folder / "masks").mkdir(parents=True)
    Image.new("L", (30, 40)).save(folder / "masks/a.png")
    with zipfile.ZipFile(folder / "images.zip", "w", method) as archive:
        archive.writestr("images/a.png", encode("PNG"))
    return folder / "images.zip", (folder / "images.zip").read_bytes()


def problem_of_zip(folder: Path) -> str:
    (pair,) = find_pairs("folder", folder)
    with read_pair(pair, MaskRules("same")) as read:
        problems = " ".join(map(str, read.problems))
    assert pair.image.archive is not None
    pair.image.archive.close()
    return problems


def changed(content: bytes, local: int, central: int, value: bytes) -> bytes:
    """With a field of the local and the central header set."""
    file, entry = bytearray(content), content.index(b"PK\1\2")
    file[local : local + len(value)] = value
    file[entry + central : entry + central + len(value)] = value
    return bytes(file)


def test_members_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, content = zipped(tmp_path)
    assert problem_of_zip(tmp_path) == ""
    path.write_bytes(changed(content, 8, 10, b"\x09\0"))
    assert "Unpack it with the program" in problem_of_zip(tmp_path)  # Deflate64
    path.write_bytes(changed(content, 6, 8, b"\1\0"))
    assert "images.zip/images/a.png is encrypted" in problem_of_zip(tmp_path)
    path.write_bytes(changed(content, 60, 16, b"\xaa\xaa"))
    assert "is damaged" in problem_of_zip(tmp_path)
    path.write_bytes(content)
    monkeypatch.setattr("ulvm.datasets.find.ZIP_MEMBER_BYTES", 100)
    assert "is longer than 100 bytes" in problem_of_zip(tmp_path)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_damage_in_other_codes(tmp_path: Path, method: int) -> None:
    path, content = zipped(tmp_path, method)
    assert problem_of_zip(tmp_path) == ""
    path.write_bytes(content[:60] + bytes(len(content[60:120])) + content[120:])
    assert "images/a.png " in problem_of_zip(tmp_path)


# JSON


def test_json_has_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert limits.parse_json("[" * 16 + "]" * 16)
    for text in ("[" * 17 + "]" * 17, "[" * 100_000, '{"a":' * 100_000):
        with pytest.raises(ValueError, match=r"brackets deep|JSON|Expecting"):
            limits.parse_json(text)
    path = tmp_path / "s.json"
    for content in (b"[" * 200_000, b"9" * 5000, b"\xff\xfe\0", b"{}" * 9):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"s\.json"):
            load_split("folder", path)
    monkeypatch.setattr("ulvm.splits.JSON_BYTES", 20)
    path.write_bytes(b'{"parts": {"train": ["a", "b"]}}')
    with pytest.raises(InputError, match="longer than 20 bytes"):
        load_split("folder", path)


@pytest.mark.parametrize("value", ["9" * 5000, "[" * 5000, "1e999", "nan", "-" * 9000])
@pytest.mark.parametrize("field", ["train.seed", "train.epochs", "model.widths", "threshold"])
def test_odd_values_of_fields(field: str, value: str) -> None:
    with pytest.raises(InputError) as caught:
        RunSpec().override([f"{field}={value}"])
    assert len(str(caught.value)) < 1500


@pytest.mark.parametrize("threshold", ["0.5", True, [0.5], 1j])
def test_a_threshold_is_a_number(threshold: Any) -> None:
    with pytest.raises(InputError, match="must be a number between 0 and 1"):
        load()(PICTURE, threshold=threshold)


# Threads

SPY = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>
static void note(const char *name) {
  if (syscall(SYS_gettid) == getpid()) return;
  FILE *file = fopen(getenv("NOTES"), "a");
  if (file) fprintf(file, "%s\\n", name), fclose(file);
}
int setenv(const char *name, const char *value, int replace) {
  note(name);
  int (*next)(const char *, const char *, int) = dlsym(RTLD_NEXT, "setenv");
  return next(name, value, replace);
}
"""


def test_no_thread_sets_a_variable(tmp_path: Path) -> None:
    """libjpeg reads variables in another thread: setting one moves the table under it."""
    if sys.platform != "linux" or shutil.which("gcc") is None:
        pytest.skip("the spy needs Linux and gcc")
    (tmp_path / "spy.c").write_text(SPY)
    spy, notes = tmp_path / "spy.so", tmp_path / "notes"
    subprocess.run(["gcc", "-shared", "-fPIC", tmp_path / "spy.c", "-o", spy, "-ldl"], check=True)
    (tmp_path / "photo.jpg").write_bytes(encode("JPEG"))
    source = str(Path(ulvm.__file__).parents[1])
    environment = {"PYTHONPATH": source, "LD_PRELOAD": str(spy), "NOTES": str(notes)}
    seen = "import os, threading as t; w = t.Thread(target=os.putenv, args=('A', 'b')); w.start()"
    for words in (["-c", seen], ["-m", "ulvm", "predict", "photo.jpg", "--overlay"]):
        notes.write_text("")
        subprocess.run([sys.executable, *words], env=environment, cwd=tmp_path, check=True)
        assert notes.read_text() == ("A\n" if words[0] == "-c" else "")


# ONNX


def test_weights_outside_an_onnx_file_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="the extra [onnx] is not installed")
    onnx = pytest.importorskip("onnx", reason="the extra [train] is not installed")
    from ulvm.onnx import OnnxNetwork

    tensor = onnx.TensorProto(name="w", data_type=1, dims=[1], data_location=1)
    tensor.external_data.add(key="location", value="secret.bin")
    node = onnx.helper.make_node("Identity", ["w"], ["probability"])
    output = onnx.helper.make_tensor_value_info("probability", 1, [1])
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [], [output], [tensor]))
    with pytest.raises(InputError, match="has weights in another file"):
        OnnxNetwork(model.SerializeToString(), "m.onnx")


@pytest.mark.parametrize("factor", [float("nan"), 300.0, -1.0])
def test_onnx_output_that_is_no_probability(factor: float) -> None:
    pytest.importorskip("onnxruntime", reason="the extra [onnx] is not installed")
    onnx = pytest.importorskip("onnx", reason="the extra [train] is not installed")
    from ulvm.onnx import OnnxNetwork

    helper = onnx.helper
    nodes = [
        helper.make_node("Cast", ["image_rgb"], ["x"], to=1),
        helper.make_node("Mul", ["x", "f"], ["probability"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image_rgb", 2, [1, 2, 2, 3])],
        [helper.make_tensor_value_info("probability", 1, [1, 2, 2, 3])],
        [helper.make_tensor("f", 1, [1], [factor])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    network = OnnxNetwork(model.SerializeToString(), "m.onnx")
    with pytest.raises(InputError, match="no probability"):
        network(np.ones((1, 2, 2, 3), np.uint8))
    with pytest.raises(InputError, match="cannot be run"):
        network(np.ones((1, 4), np.uint8))
