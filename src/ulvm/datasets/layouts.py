"""How data sets lie on disk: the folders of pictures and masks of each public download."""

import re
from dataclasses import dataclass
from typing import get_args

from ulvm.spec import DatasetName

DATASETS: tuple[str, ...] = get_args(DatasetName)

MASK_ENDINGS = ("_segmentation", "_lesion", "_mask")  # in small letters or capitals

# What downloads, operating systems and notebooks put beside the pictures.
JUNK = re.compile(
    r"(^|/)(\.|__MACOSX/|Thumbs\.db$|desktop\.ini$)|_superpixels\.png$"
    r"|(^|/)(ATTRIBUTION|LICENSE|PH2_dataset)\.(txt|xlsx)$",
    re.IGNORECASE,
)

# Where pictures and masks share a folder, names tell them apart: the id, then what marks a mask.
PH2_NAME = re.compile(r"(IMD\d+)(_lesion)?")
SHARED_NAME = re.compile(r"(.+?)(_mask(?:_\d+)?)?", re.IGNORECASE)


@dataclass(frozen=True)
class Layout:
    """Where a part of a data set lies.

    Args:
        part: Official part: `train`, `validation` or `test`; `all` where there are no parts.
        images: Folders of pictures, one of which must be there; all that are there are read.
        masks: Folders of masks; the same as `images` where they share their folders.
        name: Pattern that tells pictures from masks where they share their folders.
        picture_ending: What the names of pictures have beyond those of masks.
        masks_may_miss: Whether pictures without a folder of masks are passed over.
    """

    part: str
    images: tuple[str, ...]
    masks: tuple[str, ...]
    name: re.Pattern[str] = SHARED_NAME
    picture_ending: str = ""
    masks_may_miss: bool = False


Form = tuple[Layout, ...]
"""The parts of a data set, as one download has them."""


def _whole(images: str, masks: str) -> Form:
    return (Layout("all", (images,), (masks,)),)


def _shared(*folders: str, name: re.Pattern[str] = SHARED_NAME) -> Form:
    return (Layout("all", folders, folders, name),)


def _parts(images: str, masks: str, **names: str) -> Form:
    return tuple(
        Layout(part, (images.format(name),), (masks.format(name),)) for part, name in names.items()
    )


def _sorted(**names: str) -> Form:
    """A folder a part, by any of these names, in small letters or capitalised."""

    def inside(part: str, side: str) -> tuple[str, ...]:
        spelled = [form(name) for name in names[part].split() for form in (str, str.title)]
        return tuple(f"{name}/{form(side)}" for name in spelled for form in (str, str.title))

    return tuple(Layout(part, inside(part, "images"), inside(part, "masks")) for part in names)


_PLAIN = (_whole("images", "masks"), _whole("Images", "Masks"))

FORMS: dict[str, tuple[Form, ...]] = {
    "isic2016": (
        _parts(
            "ISBI2016_ISIC_Part1_{}_Data",
            "ISBI2016_ISIC_Part1_{}_GroundTruth",
            train="Training",
            test="Test",
        ),
    ),
    "isic2017": (
        _parts(
            "ISIC-2017_{}_Data",
            "ISIC-2017_{}_Part1_GroundTruth",
            train="Training",
            validation="Validation",
            test="Test_v2",
        ),
    ),
    "isic2018": (
        _parts(
            "ISIC2018_Task1-2_{}_Input",
            "ISIC2018_Task1_{}_GroundTruth",
            train="Training",
            validation="Validation",
            test="Test",
        ),
    ),
    # The official tree, with or without its outer folder, and flat.
    "ph2": (
        _shared("PH2Dataset", name=PH2_NAME),
        _shared("PH2 Dataset images", name=PH2_NAME),
        _whole("trainx", "trainy"),
    ),
    "ham10000": (
        (
            Layout(
                "all",
                ("HAM10000_images_part_1", "HAM10000_images_part_2"),
                ("HAM10000_segmentations_lesion_tschandl",),
            ),
        ),
        *_PLAIN,
    ),
    # The pictures are in images/imgs_part_1 to 3, the masks are another's and come on their own.
    "pad-ufes": _PLAIN,
    "folder": (
        *_PLAIN,  # Kvasir-SEG and CVC-ColonDB too
        _sorted(train="train training", validation="val validation valid", test="test testing"),
        # nnU-Net, whose pictures end in the number of their channel; test masks are rarely given.
        tuple(
            Layout(
                part, (f"images{name}",), (f"labels{name}",), SHARED_NAME, "_0000", part == "test"
            )
            for part, name in (("train", "Tr"), ("test", "Ts"))
        ),
        # CVC-ClinicDB, as published and as others pass it on.
        *(_whole(f"{outer}Original", f"{outer}Ground Truth") for outer in ("", "PNG/", "TIF/")),
        # BUSI: pictures and masks side by side, several masks of one picture numbered.
        _shared("Dataset_BUSI_with_GT"),
        _shared("benign", "malignant", "normal"),
    ),
}
"""Each data set in the forms it is found; the fullest is read, of equals the first."""

DOWNLOADS = {
    "isic2017": "download the ISIC 2017 Task 1 files from https://challenge.isic-archive.com/data/",
    "isic2018": "download the ISIC 2018 Task 1 files from https://challenge.isic-archive.com/data/",
    "ph2": "download PH2 from https://www.fc.up.pt/addi/ph2%20database.html and unpack the .rar",
    "isic2016": "download ISIC 2016 Task 1 from https://challenge.isic-archive.com/data/",
    "ham10000": "download HAM10000 and its lesion segmentations from the Harvard Dataverse",
    "pad-ufes": "put the pictures of PAD-UFES-20 in images/ and masks of their names in masks/",
    "folder": "put the pictures in images/ and the masks, with the same file names, in masks/",
}
