"""The commands of the application: each reads settings, calls the library and writes files."""

import os

# This must be set before any library starts threads. Waiting threads then sleep instead of spinning, which would
# slow down the threads and processes that prepare scans and batches on the same cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
