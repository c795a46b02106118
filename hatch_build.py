"""Builds the engine into the wheel: for this machine, or the platform that ULVM_PLATFORM names."""

import hashlib
import importlib.util
import json
import os
import re
from importlib import metadata
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class EngineHook(BuildHookInterface):  # type: ignore[type-arg]
    """Compiles with ziglang's compiler, which pip fetches for the build alone."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile what is older than its sources; tag the wheel for the platform."""
        root = Path(self.root)
        build = _load_build(root / "src" / "ulvm" / "engine" / "build.py")
        name = os.environ.get("ULVM_PLATFORM") or build.this_platform()
        if name not in build.PLATFORMS:
            accepted = ", ".join(build.PLATFORMS)
            raise build.BuildError(f"ULVM_PLATFORM is {name}. Accepted are {accepted}.")
        platform = build.PLATFORMS[name]
        build_data["tag"] = f"py3-none-{platform.tag}"
        build_data["pure_python"] = False
        if version == "editable":  # Python reads the tree itself
            build.build(platform, build.ENGINE)
            for page in build.WASM_PLATFORMS.values():
                build.build(page, build.WEB)
            return
        # Not in the tree, where a library of another platform may lie.
        folder = root / "build"
        library = build.build(platform, folder / name)
        build_data["force_include"][str(library)] = f"ulvm/engine/{library.name}"
        for page in build.WASM_PLATFORMS.values():
            module = build.build(page, folder / "wasm")
            build_data["force_include"][str(module)] = f"ulvm/web/{module.name}"
        bill = folder / name / f"{self.metadata.core.name}.cdx.json"
        content = self._write_bill(build_data["force_include"])
        bill.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
        build_data["sbom_files"].append(str(bill.relative_to(root)))

    def _write_bill(self, compiled: dict[str, str]) -> dict[str, Any]:
        """What the wheel is made of, as CycloneDX 1.6: without a date, so that it stays the same.

        Args:
            compiled: Path of each compiled file, and its place in the wheel.

        Source: PEP 770 for its place, .dist-info/sboms/.
        """
        project = self.metadata.core
        weights = sorted((Path(self.root) / "src" / "ulvm" / "weights").glob("*.safetensors"))
        files = {place: Path(path) for path, place in compiled.items()}
        files |= {f"ulvm/weights/{path.name}": path for path in weights}
        name = f"pkg:pypi/{project.name}@{self.metadata.version}"
        needed = [re.match(r"([\w.-]+)(.*)", each) for each in project.dependencies]
        libraries = [
            {
                "type": "library",
                "bom-ref": f"pkg:pypi/{match[1]}",
                "name": match[1],
                "purl": f"pkg:pypi/{match[1]}",
                "scope": "required",
                "properties": [{"name": "ulvm:versions", "value": match[2]}],
            }
            for match in needed
            if match
        ]
        return {
            "bomFormat": "CycloneDX",
            "specVersion": "1.6",
            "version": 1,
            "metadata": {
                "component": {
                    "type": "library",
                    "bom-ref": name,
                    "name": project.name,
                    "version": self.metadata.version,
                    "purl": name,
                    "licenses": [{"license": {"id": "MIT"}}],
                },
                "tools": {
                    "components": [
                        {"type": "application", "name": tool, "version": metadata.version(tool)}
                        for tool in ("hatchling", "ziglang")
                    ]
                },
            },
            "components": [
                {
                    "type": "file",
                    "bom-ref": place,
                    "name": place,
                    "hashes": [
                        {
                            "alg": "SHA-256",
                            "content": hashlib.sha256(path.read_bytes()).hexdigest(),
                        }
                    ],
                }
                for place, path in sorted(files.items())
            ]
            + libraries,
            "dependencies": [{"ref": name, "dependsOn": [each["bom-ref"] for each in libraries]}],
        }


def _load_build(path: Path) -> Any:
    """The module build.py of the package, which can't be imported before it is installed."""
    spec = importlib.util.spec_from_file_location("ulvm_engine_build", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
