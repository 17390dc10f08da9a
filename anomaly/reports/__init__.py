"""Reports for radiologists and analysts: figures, one page per scan and the worklist, as HTML and PDF.

All modules read a run folder (:mod:`anomaly.runs`) and compute no scores. Importing the package is instant;
matplotlib, nilearn and reportlab are imported by the modules that draw.
"""
