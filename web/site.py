"""Put the page into a folder that any static host serves, under any address. Run by `make site`."""

import shutil
import sys
from pathlib import Path

from ulvm.serve import page_files


def write_site(folder: Path) -> int:
    """The files that ``ulvm serve`` serves, in a new folder; how many.

    Addresses in them are relative, so that the folder may lie under any path of a host.
    """
    if folder.exists():
        if not (folder / "engine.wasm").is_file() and any(folder.iterdir()):
            sys.exit(f"{folder} holds something else. Name another folder, or empty it.")
        shutil.rmtree(folder)
    files = page_files()
    del files["/"]  # it is index.html
    for address, file in files.items():
        path = folder / address[1:]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.read_bytes())
    (folder / ".nojekyll").touch()  # for hosts that would rework the files
    return len(files)


if __name__ == "__main__":
    out = Path(sys.argv[1])
    print(f"{write_site(out)} files in {out}: put it on a web server, under any path")
