"""``python -m pipelines`` runs the command line, as ``python -m anomaly`` does."""

from pipelines.cli import main

main()
