"""``python -m pipelines`` is ``anomaly``."""

from pipelines.cli import main

main()
