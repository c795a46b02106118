"""A trained network as a MONAI bundle: ``ulvm export MODEL --target monai --out FOLDER``.

The folder runs where MONAI is; ulvm is not needed there. Source of its fields: MONAI Bundle
Specification.
"""

from __future__ import annotations

import json
from importlib import metadata, resources
from pathlib import Path
from string import Template
from typing import Any

from ulvm.nn.planes import build_torchscript, state_dict_file
from ulvm.use import NOTICE
from ulvm.use.model_folder import (
    DESCRIPTION,
    PAPER,
    PAPER_LINK,
    Loaded,
    data_licence,
    load_model,
    readme,
    require_equal,
    write_folder,
)
from ulvm.version import __version__

SCHEMA = (
    "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/"
    "meta_schema_20240725.json"
)
_TESTED_MONAI = "1.6.1"
_HOW = """## Run it

```console
$ python -m monai.bundle run --config_file configs/inference.json --bundle_root . \\
    --dataset_dir PICTURES --output_dir MASKS
```

It writes a mask, 0 and 255 or the labels, for each PNG or JPEG file. `models/model.ts` needs no
code of its own; `models/model.pt` holds the same tensors for the package ultralight-vm-unet."""


def export(model: str | Path, out: Path) -> dict[str, Any]:
    """Write a bundle.

    Args:
        model: A run folder, a weights file or the name of a model.
        out: The folder, made where missing.

    Returns:
        ``bytes`` written and ``largest_difference_from_torch``.

    Raises:
        InputError: There is no such model, or TorchScript computes something else than torch;
            then nothing is written.
    """
    loaded = load_model(model)
    script, difference = build_torchscript(loaded.module, loaded.run)
    require_equal(difference, "TorchScript")
    size = write_folder(
        out,
        {
            "models/model.ts": script,
            "models/model.pt": state_dict_file(loaded.module),
            "configs/metadata.json": _json(_metadata(loaded)),
            "configs/inference.json": _json(_inference(loaded)),
            "docs/README.md": readme(loaded, _HOW).encode(),
            "docs/data_license.txt": data_licence(loaded.run).encode(),
        },
    )
    return {"bytes": size, "largest_difference_from_torch": difference}


def _metadata(loaded: Loaded) -> dict[str, Any]:
    size = loaded.run.data.image_size
    tensor = {"type": "image", "spatial_shape": [size, size], "dtype": "float32"}
    return {
        "schema": SCHEMA,
        "version": __version__,
        "changelog": {__version__: f"written by ulvm {__version__}"},
        "monai_version": _TESTED_MONAI,
        "pytorch_version": metadata.version("torch").partition("+")[0],
        "numpy_version": metadata.version("numpy"),
        "required_packages_version": {
            "pytorch-ignite": "0.5.1",
            "pillow": metadata.version("pillow"),
        },
        "optional_packages_version": {},
        "supported_apps": {},
        "name": f"{loaded.run.model.network} skin lesion",
        "task": "Segmentation of skin lesions in dermoscopic pictures",
        "description": f"{DESCRIPTION} {NOTICE}",
        "authors": "The ulvm maintainers",
        "copyright": "MIT licence",
        "data_source": ", ".join(source.dataset for source in loaded.run.data.sources),
        "data_type": "PNG or JPEG",
        "image_classes": "RGB, 0..255",
        "label_classes": "0 is background, 255 is lesion",
        "pred_classes": ", ".join(loaded.classes),
        "intended_use": NOTICE,
        "references": [f"{PAPER}. {PAPER_LINK}"],
        "network_data_format": {
            "inputs": {
                "image": {
                    **tensor,
                    "format": "magnitude",
                    "modality": "dermoscopy",
                    "num_channels": 3,
                    "value_range": [0, 255],
                    "is_patch_data": False,
                    "channel_def": {"0": "red", "1": "green", "2": "blue"},
                }
            },
            "outputs": {
                "pred": {
                    **tensor,
                    "format": "segmentation" if len(loaded.classes) == 1 else "labels",
                    "num_channels": len(loaded.classes),
                    "value_range": [0, 1],
                    "is_patch_data": False,
                    "channel_def": {str(key): name for key, name in enumerate(loaded.classes)},
                }
            },
        },
    }


def _inference(loaded: Loaded) -> dict[str, Any]:
    """Preprocessing, network and postprocessing, as MONAI's own runner and its apps read them.

    The last step swaps the axes, for MONAI writes pictures with them swapped.
    """
    if len(loaded.classes) == 1:
        decide = f"(probability >= {loaded.run.threshold}).float() * 255"
    else:
        decide = "probability.argmax(0, keepdim=True).float()"
    text = resources.files(__package__).joinpath("monai_inference.json").read_text(encoding="utf-8")
    config: dict[str, Any] = json.loads(Template(text).safe_substitute(decide=decide))
    return config | {"image_size": loaded.run.data.image_size}


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()
