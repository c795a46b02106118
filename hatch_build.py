"""Builds the engine into the wheel: for this machine, or the platform that ULVM_PLATFORM names."""

import importlib.util
import os
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


def _load_build(path: Path) -> Any:
    """The module build.py of the package, which can't be imported before it is installed."""
    spec = importlib.util.spec_from_file_location("ulvm_engine_build", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
