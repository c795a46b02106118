"""The one error for what the caller caused."""


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
