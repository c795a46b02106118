"""The engine's reader of weights, compiled with sanitizers: what it accepts, says and refuses."""

from __future__ import annotations

import itertools
import json
import math
import struct
import subprocess
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine import sanitize
from ulvm.engine import build
from ulvm.nn.checkpoint import save_weights
from ulvm.nn.networks import build_network
from ulvm.spec import ModelSpec, RunSpec

RESULTS = Path(__file__).parents[2] / "results" / "weights"
READER, DRIVER = build.ENGINE / "weights.c", Path(__file__).with_name("driver_weights.c")
OK, BAD_FILE, BAD_TENSOR, UNSUPPORTED, NO_MEMORY = 0, 2, 3, 4, 5
SPECS = {
    "paper": ModelSpec(),
    "four-wide": ModelSpec(widths=(4,) * 6),
    "odd-widths": ModelSpec(widths=(12, 20, 28, 36, 44, 52)),
    "wide": ModelSpec(widths=(16, 32, 64, 128, 160, 192)),  # dt_rank 2 and 3
    "convolutions": ModelSpec(encoder=("conv",) * 6, decoder=("conv",) * 5),
    "all-pvm": ModelSpec(encoder=("pvm",) * 6, decoder=("pvm",) * 5, in_channels=4),
    "alternating": ModelSpec(
        encoder=("conv", "pvm", "conv", "pvm", "conv", "pvm"),
        decoder=("conv", "pvm", "conv", "pvm", "conv"),
    ),
    "spatial": ModelSpec(bridge="spatial"),
    "channel": ModelSpec(bridge="channel"),
    "no-bridge": ModelSpec(bridge="none"),
    "one-branch": ModelSpec(branches=1),
    "eight-branches": ModelSpec(branches=8),
    "mamba-5-3-1": ModelSpec(d_state=5, d_conv=3, expand=1, init="mamba"),
    "three-classes": ModelSpec(classes=3, in_channels=1),
    "most": ModelSpec(in_channels=16, classes=255, d_state=256, d_conv=16, expand=16),
}


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if sanitize.compiler(sanitize.ADDRESS) is None:
        pytest.skip("no clang or gcc with the address sanitizer is installed")
    program = tmp_path_factory.mktemp("driver") / "driver"
    return sanitize.compile_program([DRIVER, READER], program, sanitize.ADDRESS, ["-Wall"])


Answer = tuple[int, str, list[str]]  # code, sentence, lines about the network


def read(driver: Path, files: Sequence[bytes]) -> list[Answer]:
    """What the driver says of each file; a sanitizer's report fails the test."""
    done = subprocess.run(
        [driver],
        input=b"".join(struct.pack("<Q", len(file)) + file for file in files),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")[:4000]
    answers: list[Answer] = []
    lines: list[str] = []
    for line in done.stdout.decode("ascii").splitlines():
        first, _, rest = line.partition(" ")
        if first.isdigit():
            answers.append((int(first), rest, lines))
            lines = []
        else:
            lines.append(line)
    assert len(answers) == len(files)
    return answers


def split(file: bytes) -> tuple[dict[str, Any], bytes]:
    end = 8 + int.from_bytes(file[:8], "little")
    return json.loads(file[8:end]), file[end:]


def join(header: dict[str, Any] | str | bytes, data: bytes = b"") -> bytes:
    """A safetensors file of a header, as an object or as its text."""
    if isinstance(header, dict):
        header = json.dumps(header)
    text = header if isinstance(header, bytes) else header.encode()
    return struct.pack("<Q", len(text)) + text + data


def checksums(file: bytes) -> list[str]:
    """The driver's lines about the tensors, from the file."""
    header, data = split(file)
    del header["__metadata__"]
    lines = []
    for name, entry in header.items():
        values = data[slice(*entry["data_offsets"])]
        lines.append(f"{name} {len(values) // 4} {zlib.crc32(values)}")
    return lines


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Weights of each spec, as training writes them, every value random."""
    path = tmp_path_factory.mktemp("files") / "w.safetensors"
    made = {}
    for name, spec in SPECS.items():
        network = build_network(spec)
        with torch.no_grad():
            for value in network.parameters():
                value.normal_()
        save_weights(path, network, RunSpec(model=spec), {"note": 'é\n\t"\\', "score": math.nan})
        made[name] = path.read_bytes()
    return made


# What is read


def test_every_value_of_every_network_arrives(driver: Path, files: dict[str, bytes]) -> None:
    everything = [*files.values(), sanitize.BUNDLED.read_bytes()]
    specs = [*SPECS.values(), ModelSpec()]
    names = ["in_channels", "classes", "branches", "d_state", "d_conv", "expand"]
    for (code, sentence, lines), file, spec in zip(
        read(driver, everything), everything, specs, strict=True
    ):
        assert (code, sentence) == (OK, "")
        assert lines[0] == " ".join(f"{name}={getattr(spec, name)}" for name in names)
        assert sorted(lines[1:]) == sorted(checksums(file))


def test_networks_of_others_and_other_mixers_are_onnx_runtimes(driver: Path) -> None:
    paths = sorted(RESULTS.glob("*.safetensors"))
    answers = read(driver, [path.read_bytes() for path in paths])
    others = 0
    for path, (code, sentence, _) in zip(paths, answers, strict=True):
        header, _data = split(path.read_bytes())
        model = json.loads(header["__metadata__"]["ulvm"])["run"]["model"]
        if (model["network"], model["mixer"]) == ("ultralight-vm-unet", "mamba"):
            assert code == OK
            continue
        others += 1
        assert code == UNSUPPORTED
        assert path.stem.removeprefix("mixer-") in sentence
        assert "ulvm export RUN --out model.onnx" in sentence
        assert "ulvm predict --engine onnx --model model.onnx" in sentence
    assert others >= 4


def test_what_a_writer_may_do_otherwise(driver: Path, files: dict[str, bytes]) -> None:
    """Spaces, another order, escapes, more metadata and fields left out are as good."""
    header, data = split(files["paper"])
    text = json.dumps(header)
    escaped = text.replace("head.", r"\u0068ead.").replace("dtype", r"d\u0074y\u0070e")
    assert escaped.count("\\u") > 200
    other = [
        join(json.dumps(header, indent=3) + " \n\t\r ", data),
        join(dict(reversed(header.items())), data),
        join(header | {"__metadata__": {"format": "pt"} | header["__metadata__"]}, data),
        join(escaped, data),
    ]
    odd = {
        "a": [1, 0, -2.5e-3, 1e99, 2e5, True, False, None, [], {}, [{}], -math.inf, "\0\ud83d\x7f"]
    }
    for model in ({}, {"widths": [8, 16, 24, 32, 48, 64]}, {"bridge": "both", "d_state": 16}):
        description = odd | {"run": {"threshold": 0.5, "model": model}, "format": 1}
        other.append(join(describe(header, json.dumps(description, indent=1)), data))
    raw = describe(header, '{"é": "é", "format": 2, "format": 1, "run": {"model": {}}}')
    other.append(join(json.dumps(raw, ensure_ascii=False), data))  # of a key, the last one counts
    wanted = read(driver, [files["paper"]])[0]
    for code, sentence, lines in read(driver, other):
        assert (code, sentence) == (OK, "")
        assert sorted(lines) == sorted(wanted[2])


def describe(header: dict[str, Any], text: str) -> dict[str, Any]:
    """The header with another description of the run."""
    return header | {"__metadata__": {"ulvm": text}}


# What is refused


def with_model(header: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """The header with other fields of the ModelSpec."""
    description = json.loads(header["__metadata__"]["ulvm"])
    description["run"]["model"] |= fields
    return describe(header, json.dumps(description))


def test_a_field_that_does_not_fit_is_named(driver: Path, files: dict[str, bytes]) -> None:
    header, data = split(files["paper"])
    numbers = ["in_channels", "classes", "branches", "d_state", "d_conv", "expand"]
    wrong: list[tuple[str, Any]] = list(
        itertools.product(numbers, [0, -1, 1.0, True, "4", None, [4], {"a": 4}])
    )
    widths = [
        [8] * 5,
        [8] * 7,
        [8] * 70,
        [],
        8,
        "8",
        {},
        [0] + [8] * 5,
        [8] * 5 + [6],
        [-4] + [8] * 5,
    ]
    wrong += [("widths", value) for value in [*widths, [8.0] * 6, [[8]] * 6, ["8"] * 6]]
    for name, count in (("encoder", 6), ("decoder", 5)):
        stages = [["conv"] * (count - 1), ["conv"] * (count + 1), ["conv"] * 99, "conv", 6, {}]
        stages += [["conv"] * (count - 1) + [last] for last in ("Conv", "", "pvm ", 0, None, [])]
        wrong += [(name, value) for value in stages]
    wrong += itertools.product(
        ["bridge", "init"], ["", "paperr", "Both", None, 3, ["both"], "x" * 99]
    )
    wrong += [("branches", 5), ("branches", 16), ("depth", 7), ("x" * 500, 1)]
    wrong += itertools.product(["network", "mixer"], ["", None, 3, {}])
    answers = read(
        driver, [join(with_model(header, **{name: value}), data) for name, value in wrong]
    )
    for (name, value), (code, sentence, _) in zip(wrong, answers, strict=True):
        assert code == BAD_FILE, (name, value, sentence)
        assert name[:60] in sentence, (name, value, sentence)
        with pytest.raises(ValueError, match=name[:60]):  # Python refuses it too
            ModelSpec.from_dict({name: value})


def test_a_network_too_large_for_the_engine_is_onnx_runtimes(
    driver: Path, files: dict[str, bytes]
) -> None:
    header, data = split(files["paper"])
    largest = {"in_channels": 16, "classes": 255, "d_state": 256, "d_conv": 16, "expand": 16}
    convolutions = {"encoder": ["conv"] * 6, "decoder": ["conv"] * 5}  # any number of branches
    for name, most in [*largest.items(), ("branches", 1024), ("widths", 1024)]:
        values = [most, most + 4, 2**31, 2**32 + most, 2**63, 2**64 + most, 10**400]
        fields = [{name: [value] * 6 if name == "widths" else value} for value in values]
        headers = [with_model(header, **convolutions, **field) for field in fields]
        fitting, *others = read(driver, [join(each, data) for each in headers])
        assert fitting[0] == BAD_TENSOR  # it goes on to the tensors, which are another network's
        for code, sentence, _ in others:
            assert code == UNSUPPORTED
            assert f"{name} above {most}" in sentence
            assert "ulvm export RUN --out model.onnx" in sentence


def damage(header: dict[str, Any], name: str, **fields: Any) -> dict[str, Any]:
    """The header with other fields of one tensor; those of None are left out."""
    entry = {key: value for key, value in (header[name] | fields).items() if value is not None}
    return header | {name: entry}


def without(header: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in header.items() if key != name}


Damage = Callable[[dict[str, Any], bytes], tuple[dict[str, Any] | str | bytes, bytes]]
NAME = "encoder.3.mixer.scan.x_proj.weight"  # (33, 12)


def spoil(value: float | bytes) -> Damage:
    """One value of the tensor is another."""
    content = value if isinstance(value, bytes) else struct.pack("<f", value)

    def change(header: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
        place = header[NAME]["data_offsets"][1] - 4
        return header, data[:place] + content + data[place + 4 :]

    return change


def move(first: int, last: int) -> Damage:
    """The tensor's offsets, moved by so many bytes."""

    def change(header: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
        begin, end = header[NAME]["data_offsets"]
        return damage(header, NAME, data_offsets=[begin + first, end + last]), data

    return change


def replace(old: str, new: str) -> Damage:
    """The header's text with something else in one place."""

    def change(header: dict[str, Any], data: bytes) -> tuple[str, bytes]:
        text = json.dumps(header)
        assert old in text
        return text.replace(old, new, 1), data

    return change


def set_to(**fields: Any) -> Damage:
    return lambda header, data: (damage(header, NAME, **fields), data)


def set_description(text: Any) -> Damage:
    return lambda header, data: (describe(header, text), data)


def twice(header: dict[str, Any], data: bytes) -> tuple[str, bytes]:
    return f'{json.dumps(header)[:-1]}, "{NAME}": {json.dumps(header[NAME])}}}', data


TENSORS: dict[str, tuple[int, Damage]] = {
    "missing": (BAD_TENSOR, lambda header, data: (without(header, NAME), data)),
    "renamed": (BAD_TENSOR, replace(NAME, NAME + "s")),
    "a shorter name": (BAD_TENSOR, replace(NAME, NAME[:-1])),
    "a name with an end inside": (BAD_TENSOR, replace(NAME, NAME + r"\u0000")),
    "a very long name": (BAD_TENSOR, replace(NAME, NAME + "x" * 5000)),
    "one too many": (BAD_TENSOR, lambda header, data: (header | {"more": header[NAME]}, data)),
    "twice": (BAD_FILE, twice),
    "transposed": (BAD_TENSOR, set_to(shape=[12, 33])),
    "flat": (BAD_TENSOR, set_to(shape=[33 * 12])),
    "one axis more": (BAD_TENSOR, set_to(shape=[33, 12, 1])),
    "an axis of 0 more": (BAD_TENSOR, set_to(shape=[33, 12, 0])),
    "many axes": (BAD_TENSOR, set_to(shape=[33, 12] + [1] * 5000)),
    "no axes": (BAD_TENSOR, set_to(shape=[])),
    "a product that overflows": (BAD_TENSOR, set_to(shape=[2**62, 4])),
    "an axis that overflows": (BAD_TENSOR, set_to(shape=[2**64 + 33, 12])),
    "a negative axis": (BAD_TENSOR, set_to(shape=[-33, -12])),
    "an axis with a fraction": (BAD_TENSOR, set_to(shape=[33.0, 12])),
    "a shape that is no list": (BAD_TENSOR, set_to(shape="33, 12")),
    "no shape": (BAD_TENSOR, set_to(shape=None)),
    "float16": (BAD_TENSOR, set_to(dtype="F16")),
    "integers": (BAD_TENSOR, set_to(dtype="I32")),
    "a longer type": (BAD_TENSOR, set_to(dtype="F32" + "x" * 100)),
    "a type that is no string": (BAD_TENSOR, set_to(dtype=32)),
    "no type": (BAD_TENSOR, set_to(dtype=None)),
    "no object": (BAD_TENSOR, lambda header, data: (header | {NAME: [1, 2]}, data)),
    "no offsets": (BAD_FILE, set_to(data_offsets=None)),
    "three offsets": (BAD_FILE, set_to(data_offsets=[0, 1584, 1584])),
    "one offset": (BAD_FILE, set_to(data_offsets=[1584])),
    "negative offsets": (BAD_FILE, set_to(data_offsets=[-1584, 0])),
    "huge offsets": (BAD_FILE, set_to(data_offsets=[2**63 - 1584, 2**63])),
    "offsets that overflow": (BAD_FILE, set_to(data_offsets=[2**64, 2**64 + 1584])),
    "offsets behind the end": (BAD_FILE, set_to(data_offsets=[10**9, 10**9 + 1584])),
    "offsets the wrong way round": (BAD_FILE, set_to(data_offsets=[1584, 0])),
    "too short": (BAD_FILE, move(0, -4)),
    "too long": (BAD_FILE, move(0, 4)),
    "empty": (BAD_FILE, move(0, -1584)),
    "overlapping the one before": (BAD_FILE, move(-4, -4)),
    "overlapping by a byte": (BAD_FILE, move(1, 1)),
    "not a number": (BAD_TENSOR, spoil(math.nan)),
    "a signalling one": (BAD_TENSOR, spoil(b"\1\0\x80\x7f")),
    "infinite": (BAD_TENSOR, spoil(math.inf)),
    "minus infinite": (BAD_TENSOR, spoil(-math.inf)),
    "a flipped bit": (BAD_TENSOR, spoil(-(2.0**64))),  # of -2.0**-64
}
DESCRIPTION = '{"format": 1, "run": {"model": {}}}'
BROKEN: dict[str, Damage] = {
    "another format": set_description(DESCRIPTION.replace("1", "2")),
    "format 1.0": set_description(DESCRIPTION.replace("1", "1.0")),
    "format -1": set_description(DESCRIPTION.replace("1", "-1")),
    "format 01": set_description(DESCRIPTION.replace("1", "01")),
    "format true": set_description(DESCRIPTION.replace("1", "true")),
    "a format that overflows": set_description(DESCRIPTION.replace("1", str(2**64 + 1))),
    "no format": set_description('{"run": {"model": {}}}'),
    "no run": set_description('{"format": 1}'),
    "no model": set_description('{"format": 1, "run": {}}'),
    "a run that is no object": set_description('{"format": 1, "run": [{"model": {}}]}'),
    "a model that is no object": set_description('{"format": 1, "run": {"model": 7}}'),
    "an empty description": set_description(""),
    "spaces": set_description("   "),
    "a description that is a list": set_description("[1]"),
    "something behind": set_description(DESCRIPTION + "}"),
    "a comma too many": set_description('{"format": 1, "run": {"model": {},}}'),
    "a comma too few": set_description('{"format": 1 "run": {"model": {}}}'),
    "a colon too few": set_description('{"format": 1, "run" {"model": {}}}'),
    "unclosed": set_description(DESCRIPTION[:-1]),
    "an unclosed string": set_description(DESCRIPTION[:-1] + ', "a'),
    "an escape that isn't": set_description(DESCRIPTION[:-1] + r', "\x": 1}'),
    "half an escape": set_description(DESCRIPTION[:-1] + r', "\u12'),
    "an escape of no digits": set_description(DESCRIPTION[:-1] + r', "\u12g4": 1}'),
    "a backslash at the end": set_description(DESCRIPTION[:-1] + ', "\\'),
    "a line's end in a string": set_description(DESCRIPTION[:-1] + ', "\n": 1}'),
    "a word that isn't": set_description(DESCRIPTION[:-1] + ', "a": nil}'),
    "half a word": set_description(DESCRIPTION[:-1] + ', "a": tru'),
    "a number without digits": set_description(DESCRIPTION[:-1] + ', "a": -}'),
    "a fraction without digits": set_description(DESCRIPTION[:-1] + ', "a": 1.}'),
    "an exponent without digits": set_description(DESCRIPTION[:-1] + ', "a": 1e+}'),
    "a number at the end": set_description("1"),
    "deep lists": set_description("[" * 100_000),
    "deep objects": set_description('{"a":' * 100_000),
    "17 lists": set_description(DESCRIPTION[:-1] + ', "a": ' + "[" * 16 + "]" * 16 + "}"),
    "a description that is no string": set_description({"format": 1}),
    "no description": lambda header, data: (header | {"__metadata__": {"other": "x"}}, data),
    "no metadata": lambda header, data: (without(header, "__metadata__"), data),
    "metadata that is no object": lambda header, data: (header | {"__metadata__": "x"}, data),
    "no end of the header": lambda header, data: (json.dumps(header)[:-1], data),
    "two headers": lambda header, data: (json.dumps(header) * 2, data),
    "a header that is a list": lambda header, data: (json.dumps([*header]), data),
    "an empty object": lambda header, data: ("{}", data),
    "a header of lists": lambda header, data: ("[" * 1_000_000, data),
    "bytes that are no text": lambda header, data: (
        b"\xff\x00" + json.dumps(header).encode(),
        data,
    ),
    "too large a header": lambda header, data: (json.dumps(header) + " " * 2**24, data),
    "a byte too many": lambda header, data: (header, data + b"\0"),
    "a value too many": lambda header, data: (header, data + b"\0\0\0\0"),
    "a byte too few": lambda header, data: (header, data[:-1]),
    "no data": lambda header, data: (header, b""),
}


def test_each_damage_gives_its_code_and_a_sentence(driver: Path, files: dict[str, bytes]) -> None:
    header, data = split(files["paper"])
    cases = {name: (code, True, change) for name, (code, change) in TENSORS.items()}
    cases |= {name: (BAD_FILE, False, change) for name, change in BROKEN.items()}
    assert len(cases) == len(TENSORS) + len(BROKEN) > 80
    damaged = [join(*change(header, data)) for _, _, change in cases.values()]
    answers = read(driver, damaged)
    for (name, (code, names_tensor, _)), answer in zip(cases.items(), answers, strict=True):
        assert answer[0] == code, (name, answer)
        assert is_a_sentence(answer[1]), (name, answer)
        if names_tensor:
            assert ("tensor more " if name == "one too many" else "tensor encoder.3.") in answer[
                1
            ], name


def is_a_sentence(text: str) -> bool:
    return 40 < len(text) < 252 and text[0].isupper() and text.endswith(".") and text.isprintable()


def test_names_from_a_file_cannot_write_to_a_terminal(
    driver: Path, files: dict[str, bytes]
) -> None:
    header, data = split(files["four-wide"])
    names = ["\x1b[2J\r\n\b", "héad", "\udcff" * 200, "%s%n%x" * 9, "\u0000"]
    damaged = [join(header | {name: header["head.bias"]}, data) for name in names]
    for code, sentence, _ in read(driver, damaged):
        assert code == BAD_TENSOR
        assert sentence.isascii()
        assert is_a_sentence(sentence)


def test_a_file_cut_short_anywhere_is_refused(driver: Path, files: dict[str, bytes]) -> None:
    file = files["four-wide"]
    end = 8 + int.from_bytes(file[:8], "little")
    ends = [*range(64), *range(64, end, 37), *range(end - 9, end + 9), *range(end, len(file), 211)]
    cut = [file[:length] for length in [*ends, len(file) - 1]]
    # And with a header that is as short as the file.
    cut += [join(file[8:length], b"") for length in range(8, end, 13)]
    for code, sentence, _ in read(driver, cut):
        assert code in (BAD_FILE, BAD_TENSOR)
        assert is_a_sentence(sentence)


def test_bits_flipped_anywhere_are_refused_or_read(driver: Path, files: dict[str, bytes]) -> None:
    """A flipped bit may be another finite value; it is never a report or another code."""
    file = files["four-wide"]
    end = 8 + int.from_bytes(file[:8], "little")
    random = np.random.default_rng(0)
    places = [*range(8), *range(8, end, 9), *random.integers(end, len(file), 200)]
    flipped = []
    for place in places:
        other = bytearray(file)
        other[place] ^= 1 << int(random.integers(8))
        flipped.append(bytes(other))
    answers = read(driver, flipped)
    for place, (code, sentence, _) in zip(places, answers, strict=True):
        assert code in (OK, BAD_FILE, BAD_TENSOR, UNSUPPORTED)
        assert (code == OK) == (sentence == "")
        if place < 8:
            assert code == BAD_FILE
    refused = sum(
        code != OK for (code, *_), place in zip(answers, places, strict=True) if place < end
    )
    assert refused > 0.7 * sum(place < end for place in places)


def test_the_length_in_front_is_not_believed(driver: Path) -> None:
    lengths = [0, 1, 2**20, 2**20 + 1, 2**31 - 1, 2**31, 2**32 + 2, 2**63, 2**64 - 8, 2**64 - 1]
    rests = (b"", b"{}", b"{}" * 100)
    files = [struct.pack("<Q", length) + rest for length, rest in itertools.product(lengths, rests)]
    for code, sentence, _ in read(driver, files):
        assert code == BAD_FILE
        assert is_a_sentence(sentence)


def change_reader(old: str, new: str, folder: Path) -> Path:
    """The driver with a reader in which, or in whose JSON, something else is written."""
    sources = {path.name: path.read_text() for path in (READER, READER.with_name("json.h"))}
    assert sum(source.count(old) for source in sources.values()) == 1
    for name, source in sources.items():
        (folder / name).write_text(source.replace(old, new))
    return sanitize.compile_program(
        [DRIVER, folder / "weights.c"], folder / "changed", sanitize.ADDRESS
    )


@pytest.mark.parametrize(
    "allocation", ["calloc(1, sizeof *all)", "malloc((size_t)length + 1)", "malloc(bytes)"]
)
def test_without_memory_there_is_a_sentence(
    allocation: str, driver: Path, files: dict[str, bytes], tmp_path: Path
) -> None:
    changed = change_reader(allocation, "NULL", tmp_path)
    for code, sentence, _ in read(changed, [files["paper"]] * 2):
        assert code == NO_MEMORY
        assert is_a_sentence(sentence)


# That these tests would fail


def behind_the_end(header: dict[str, Any], data: bytes) -> bytes:
    begin = len(data) + 64
    return join(damage(header, NAME, data_offsets=[begin, begin + 33 * 12 * 4]), data)


MUTANTS: dict[str, tuple[str, str, Callable[[dict[str, Any], bytes], bytes]]] = {
    "digits": ("json->at < json->end && *json->at && s", "s", lambda *_: join('{"a": 1234')),
    "strings": ("json->at < json->end ? *json->at++ : 0", "*json->at++", lambda *_: join('{"abc')),
    "offsets": ("(uint64_t)ends[1] > data_bytes ||", "", behind_the_end),
    "depth": ("++json->depth > DEEPEST", "++json->depth < 0", lambda *_: join("[" * 2**20)),
    "overflow": ("value < 1000000000000000", "value >= 0", lambda *_: join('{"a": ' + "9" * 99)),
    "leak": ("  free(text);\n", "", join),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_without_a_check_the_sanitizers_report(
    name: str, driver: Path, files: dict[str, bytes], tmp_path: Path
) -> None:
    old, new, make = MUTANTS[name]
    file = make(*split(files["paper"]))
    read(driver, [file])  # the true one has nothing to report
    mutant = change_reader(old, new, tmp_path)
    with pytest.raises(AssertionError, match=r"Sanitizer|runtime error"):
        read(mutant, [file])


# Fuzzing


@pytest.mark.skipif(
    sanitize.compiler(sanitize.FUZZER) is None, reason="no clang with libFuzzer is installed"
)
def test_a_short_fuzzing_finds_nothing(tmp_path: Path) -> None:
    done = sanitize.fuzz(tmp_path, 10_000)
    assert done.returncode == 0, done.stdout[-4000:]
    assert "stat::number_of_executed_units: 10000" in done.stdout
