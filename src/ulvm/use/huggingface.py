"""The network as folder or repository of the Hugging Face Hub."""

# Without `from __future__ import annotations`: the mixin reads the annotation of `run`.
import math
from pathlib import Path
from typing import Any, Self

from ulvm.errors import InputError, install_extra
from ulvm.nn.checkpoint import save_weights
from ulvm.nn.reuse import SelfNormalising, load_pretrained
from ulvm.segmenter import read_header
from ulvm.spec import RunSpec
from ulvm.use import NOTICE

try:
    from huggingface_hub import ModelCard, ModelCardData, PyTorchModelHubMixin
except ModuleNotFoundError as problem:
    raise InputError(
        "huggingface_hub is not installed", "", install_extra("huggingface")
    ) from problem

WEIGHTS = "model.safetensors"
_PUBLIC_DOMAIN = ("isic2017",)  # other data sets may bind weights that were made with them


class HubNetwork(
    SelfNormalising,
    PyTorchModelHubMixin,
    library_name="ulvm",
    license="mit",
    pipeline_tag="image-segmentation",
    tags=["dermoscopy", "skin-lesion", "medical-imaging"],
    coders={RunSpec: (RunSpec.to_dict, RunSpec.from_dict)},
):
    """The network with ``save_pretrained``, ``from_pretrained`` and ``push_to_hub``.

    ``config.json`` holds the run, ``model.safetensors`` the weights, with the run inside, so that
    ``ulvm.load`` takes the same file. Pictures may have any range.

    Args:
        run: The run that made the weights; by default the paper's, with fresh weights.
    """

    def __init__(self, run: RunSpec = RunSpec()) -> None:  # noqa: B008 - frozen
        super().__init__(run.model)
        self.run = run
        self.provenance: dict[str, Any] = {}

    @classmethod
    def from_ulvm(cls, model: str | Path | None = None) -> Self:
        """A model of this project, to save or to push.

        Args:
            model: As for ``ulvm.nn.load_weights``.

        Raises:
            InputError: As ``load_pretrained``.
        """
        loaded, run, provenance = load_pretrained(model)
        network = cls(run)
        network.load_state_dict(loaded.state_dict())
        network.provenance = provenance
        network.eval()
        return network

    def _save_pretrained(self, save_directory: Path) -> None:
        save_weights(Path(save_directory) / WEIGHTS, self, self.run, self.provenance)

    @classmethod
    def _load_as_safetensor(
        cls, model: Any, model_file: str, map_location: str, strict: bool
    ) -> Any:
        """All tensors or an error, whatever ``strict`` says; and what else the file says."""
        network = super()._load_as_safetensor(model, model_file, map_location, strict=True)
        stored = read_header(Path(model_file).read_bytes()) or {}
        network.provenance = {key: value for key, value in stored.items() if key != "run"}
        return network

    def generate_model_card(self, *_: Any, **__: Any) -> ModelCard:
        """What ``save_pretrained`` writes as README.md."""
        info = self._hub_mixin_info.model_card_data.to_dict()
        if any(source.dataset not in _PUBLIC_DOMAIN for source in self.run.data.sources):
            info["license"] = "other"
        data = ModelCardData(**info).to_yaml()
        return ModelCard(f"---\n{data}\n---\n\n{self._describe()}")

    def _describe(self) -> str:
        parameters = sum(math.prod(value.shape) for value in self.parameters())
        size = self.run.data.image_size
        sources = ", ".join(f"{each.dataset} ({each.split})" for each in self.run.data.sources)
        return _CARD.format(
            notice=NOTICE,
            parameters=parameters,
            size=size,
            classes=self.run.model.classes,
            sources=sources,
            threshold=self.run.threshold,
            weights=WEIGHTS,
        )


_CARD = """\
# UltraLight VM-UNet

Outlines skin lesions in dermoscopic pictures. {parameters:,} parameters; arXiv 2403.20035.

**{notice}**

| | |
|---|---|
| input | (batch, 3, height, width), RGB of any range, trained at {size}×{size} |
| output | logits (batch, {classes}, height, width); threshold {threshold} after the sigmoid |
| data and split | {sources}; each data set has its own licence |
| run, scores, versions | in `config.json` and in the metadata of `{weights}` |

```python
from ulvm.use.huggingface import HubNetwork

network = HubNetwork.from_pretrained("this folder or repository")
```

Without torch: `ulvm.load("{weights}")("photo.jpg")`.
"""
