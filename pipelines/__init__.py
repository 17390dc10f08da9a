"""What a user runs: each file reads a config, calls the library and writes files."""

import os

# Before any library starts threads: those that wait must sleep, because spinning ones starve the threads and
# processes that prepare scans and batches on the same cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
