"""The one error for what the caller caused, and names as a terminal can show them."""

import re
from collections.abc import Iterable


class InputError(ValueError):
    """Something the caller gave cannot be used; the message says what to do about it.

    The message is the parts as sentences: "File not found: photo.jpg. Check the path." A part
    begins with a small letter and has no full stop, so that it can stand inside another. Control
    characters in it are escaped.

    Args:
        given: What is wrong, naming the file, field or value.
        accepted: What would have been right; empty where that goes without saying.
        remedy: What to do next; empty where ``accepted`` says it.
    """

    def __init__(self, given: str, accepted: str, remedy: str) -> None:
        parts = [_sentence(_shorten(part)) for part in (given, accepted, remedy) if part]
        super().__init__(printable(" ".join(parts)))
        self.given = given
        self.accepted = accepted
        self.remedy = remedy

    def __reduce__(self) -> tuple[type["InputError"], tuple[str, str, str]]:
        return (InputError, (self.given, self.accepted, self.remedy))


# Control characters, line and paragraph breaks, changes of direction, bytes that are no UTF-8.
_UNPRINTABLE = re.compile("[\0-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: object) -> str:
    """The text as a terminal can show it: in file names nearly any character may stand."""
    return _UNPRINTABLE.sub(_escape, str(text))


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    if 0xDC80 <= code <= 0xDCFF:  # Python's stand-in for a byte that is no UTF-8
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


class PictureWarning(UserWarning):
    """Something about a picture that decides its result and that nobody can see in it."""


class RunWarning(UserWarning):
    """Something about a run of training that its owner should know."""


def _shorten(part: str) -> str:
    """Without the middle of a very long value."""
    return part if len(part) <= 800 else f"{part[:500]} … {part[-200:]}"


def install_extra(extra: str) -> str:
    """The remedy where a package of an extra is missing."""
    return f"run pip install '.[{extra}]' in the clone of ulvm"


def not_found(path: object, accepted: str = "", *, what: str = "file") -> InputError:
    """The error for a path where nothing is.

    Args:
        path: As it was given.
        accepted: What would have been right.
        what: What was looked for there.
    """
    address = re.sub(r"^(https?|ftp|s3|gs):/+", r"\1://", str(path))  # Path joins slashes
    if "://" in address:
        return InputError(f"{address} is an address", "only files are read", "download it first")
    return InputError(f"{what} not found: {path}", accepted, "check the path")


# A noun alone before its verb is a name, be it of letters only: "masks cannot be written".
_NAME_FIRST = re.compile(
    "(?!it |that |there |nothing )[a-z]+ (cannot|gives|has|holds|is|lacks|takes|was) "
)


def _sentence(part: str) -> str:
    """With a capital, unless it begins with a file, a value or a name in code; with its stop."""
    word = part.split(maxsplit=1)[0].rstrip(",:")
    is_word = word.isalpha() and word.islower() and not _NAME_FIRST.match(part)
    capital = part[0].upper() if is_word else part[0]
    return capital + part[1:] + "." * (part[-1] not in ".?")


def unknown_name(given: str, name: str, accepted: Iterable[str]) -> InputError:
    """The error for a name that is none of those accepted; it names them, and the nearest.

    Args:
        given: What was given, in words.
        name: The name in it.
        accepted: The names there are.
    """
    import difflib

    names = list(accepted)
    close = difflib.get_close_matches(name, names, n=1)
    question = f"did you mean {close[0]!r}?" if close else ""
    return InputError(given, "choose from " + ", ".join(names), question)
