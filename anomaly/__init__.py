"""anomaly: learns what healthy tissue looks like in MRI and CT, and tells which scans do not look healthy.

Importing this package imports nothing heavy; each sub-package is imported by the code that needs it.
"""

__version__ = "0.1.0"
RESEARCH_USE_ONLY = "Research use only. Not a medical device."
