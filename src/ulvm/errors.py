"""The one error for what the caller caused."""

from collections.abc import Iterable


class InputError(ValueError):
    """Something the caller gave cannot be used; the message says what to do about it.

    Args:
        given: What was given, naming the file, field or value.
        accepted: What would have been accepted.
        remedy: What to do next.
    """

    def __init__(self, given: str, accepted: str, remedy: str) -> None:
        end = "" if remedy.endswith("?") else "."
        super().__init__(f"{given}; {accepted}; {remedy}{end}")
        self.given = given
        self.accepted = accepted
        self.remedy = remedy

    def __reduce__(self) -> tuple[type["InputError"], tuple[str, str, str]]:
        return (InputError, (self.given, self.accepted, self.remedy))


class PictureWarning(UserWarning):
    """Something about a picture that decides its result and that nobody can see in it."""


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
    return InputError(
        given,
        "accepted are " + ", ".join(names),
        f"did you mean {close[0]!r}?" if close else "choose one of these",
    )
