"""``python -m ulvm`` is ``ulvm``."""

from ulvm.cli import main

main()
