"""The caller's mistakes are told in sentences."""

import pickle

import pytest

from ulvm.errors import InputError, unknown_name


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            ("file not found: photo.jpg", "", "check the path"),
            "File not found: photo.jpg. Check the path.",
        ),
        (
            ("photo.jpg is empty", "a picture is needed", "copy it again"),
            "photo.jpg is empty. A picture is needed. Copy it again.",
        ),
        (
            ("masks cannot be written (no room)", "it has others", "there is a way"),
            "masks cannot be written (no room). It has others. There is a way.",
        ),
        (
            ("threshold=2 is out of range", "it must lie between 0 and 1", ""),
            "threshold=2 is out of range. It must lie between 0 and 1.",
        ),
        (
            ("in a.pt: no field 'x'", "--resume needs it", "did you mean 'y'?"),
            "In a.pt: no field 'x'. --resume needs it. Did you mean 'y'?",
        ),
    ],
)
def test_parts_become_sentences(parts: tuple[str, str, str], message: str) -> None:
    error = InputError(*parts)
    assert str(error) == message
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.given, again.accepted, again.remedy) == (message, *parts)


def test_an_unknown_name_is_met_with_the_nearest() -> None:
    names = ["paper", "small"]
    assert str(unknown_name("no preset 'smal'", "smal", names)) == (
        "No preset 'smal'. Choose from paper, small. Did you mean 'small'?"
    )
    assert str(unknown_name("no preset 'q'", "q", names)) == (
        "No preset 'q'. Choose from paper, small."
    )
