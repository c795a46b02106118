"""A trained network as a MONAI bundle: ``ulvm export MODEL --target monai --out FOLDER``.

The folder runs where MONAI is; ulvm is not needed there. Source of its fields: MONAI Bundle
Specification.
"""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
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
    """Preprocessing, network and postprocessing, as MONAI's own runner and its apps read them."""
    if len(loaded.classes) == 1:
        decide = f"(probability >= {loaded.run.threshold}).float() * 255"
    else:
        decide = "probability.argmax(0, keepdim=True).float()"
    # MONAI writes pictures with their axes swapped, as it reads them unless told otherwise.
    finish = (
        "$lambda data: {**data, 'pred': monai.data.MetaTensor("
        "(lambda probability: " + decide + ")(torch.nn.functional.interpolate("
        "torch.as_tensor(data['pred'])[None], size=tuple(data['picture'].shape[1:]), "
        "mode='bilinear', antialias=True)[0]).transpose(1, 2), meta=data['picture'].meta)}"
    )
    shrink = (
        "$lambda data: {**data, 'picture': data['image'], 'image': torch.nn.functional.interpolate("
        "data['image'].as_tensor()[None].to(torch.uint8), size=(@image_size, @image_size), "
        "mode='bilinear', antialias=True)[0].float()}"
    )
    return {
        "imports": [
            "$import glob",
            "$import monai",
            "$import torch",
            "$from PIL import ImageOps",
        ],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/pictures'",
        "output_dir": "$@bundle_root + '/masks'",
        "image_size": loaded.run.data.image_size,
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "pictures": "$sorted(sum((glob.glob(@dataset_dir + '/*' + end) for end in "
        "('.png', '.jpg', '.jpeg', '.PNG', '.JPG', '.JPEG')), []))",
        "network_def": "$torch.jit.load(@bundle_root + '/models/model.ts', map_location='cpu')",
        "network": "$@network_def.to(@device)",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {
                    "_target_": "LoadImaged",
                    "keys": "image",
                    "reader": "PILReader",
                    "converter": "$lambda picture: ImageOps.exif_transpose(picture).convert('RGB')",
                    "reverse_indexing": False,
                },
                {"_target_": "EnsureChannelFirstd", "keys": "image", "channel_dim": -1},
                shrink,
            ],
        },
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{'image': path} for path in @pictures]",
            "transform": "@preprocessing",
        },
        "dataloader": {
            "_target_": "DataLoader",
            "dataset": "@dataset",
            "batch_size": 1,
            "shuffle": False,
            "num_workers": 0,
        },
        "inferer": {"_target_": "SimpleInferer"},
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                finish,
                {
                    "_target_": "SaveImaged",
                    "keys": "pred",
                    "output_dir": "@output_dir",
                    "output_ext": ".png",
                    "output_postfix": "mask",
                    "output_dtype": "$torch.uint8",
                    "separate_folder": False,
                    "resample": False,
                    "writer": "PILWriter",
                },
            ],
        },
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
        },
        "run": ["$@evaluator.run()"],
    }


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()
