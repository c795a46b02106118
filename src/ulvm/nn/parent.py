"""The model that a run starts from: ``ulvm train … --from MODEL``."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ulvm.errors import InputError
from ulvm.models import read_weights
from ulvm.nn.checkpoint import load_bytes
from ulvm.provenance import Seen, read_seen
from ulvm.spec import ModelSpec, RunSpec

_HEAD = "head."  # its tensors have a row a class, in our own network


@dataclasses.dataclass(frozen=True, eq=False)
class Parent:
    """Weights to start from, and what they have been trained and chosen with.

    Args:
        name: What the caller called it.
        sha256: Of the weights file.
        model: Its network.
        state: Its tensors, on the CPU.
        seen: Of its own run, then of its own parents'.
    """

    name: str
    sha256: str
    model: ModelSpec
    state: dict[str, Tensor]
    seen: tuple[Seen, ...]

    def apply(self, run: RunSpec, assignments: Sequence[str] = ()) -> RunSpec:
        """The run with this model's network and then changed fields.

        Args:
            run: Its network is replaced.
            assignments: As for ``RunSpec.override``; of the network only ``model.classes``.

        Raises:
            InputError: The network would no longer fit the weights.
        """
        changed = dataclasses.replace(run, model=self.model).override(assignments)
        self.require_fits(changed.model)
        return changed

    def require_fits(self, model: ModelSpec) -> None:
        """Check that a network can start from these weights: the same one, but for its classes.

        Raises:
            InputError: It has other sizes.
        """
        ours, theirs = dataclasses.asdict(model), dataclasses.asdict(self.model)
        other = [name for name in ours if ours[name] != theirs[name]]
        if other and other != ["classes"]:
            name = next(each for each in other if each != "classes")
            raise InputError(
                f"model.{name}={ours[name]!r} does not fit weights of "
                f"model.{name}={theirs[name]!r}",
                f"the network is that of {self.name}, whose weights fit no other",
                f"leave out model.{name}, or --from",
            )

    def tensors_for(self, model: ModelSpec) -> dict[str, Tensor]:
        """What a network takes over: all, or with other classes all but the head."""
        self.require_fits(model)
        if model.classes == self.model.classes:
            return self.state
        return {name: each for name, each in self.state.items() if not name.startswith(_HEAD)}

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, which ``provenance.read_seen`` reads in the new weights."""
        return {
            "model": self.name,
            "sha256": self.sha256,
            "seen": [each.to_dict() for each in self.seen],
        }


def load_parent(model: str | Path) -> Parent:
    """A model to start from.

    Args:
        model: A name in ``ulvm.models.NAMES``, a weights file or a run folder of ``ulvm train``.

    Raises:
        InputError: See ``load_weights`` and ``read_seen``.
    """
    path, content = read_weights(model)
    network, run, provenance = load_bytes(content, str(path))
    state = {name: each.detach() for name, each in network.state_dict().items()}
    sha256 = hashlib.sha256(content).hexdigest()
    seen = read_seen(run, provenance)
    size = run.data.image_size  # of fingerprints in older files, which don't say it
    at_sizes = tuple(
        dataclasses.replace(each, size=each.size or size) if each.pictures else each
        for each in seen
    )
    return Parent(str(model), sha256, run.model, state, at_sizes)
