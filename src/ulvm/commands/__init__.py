"""The commands of ``ulvm``, one file each: words become calls, results become lines."""
