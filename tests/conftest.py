"""Side by side, each worker has one thread: two workers' threads would wait for each other."""

import os

# Here, before numpy, torch or a test's own process reads them.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
