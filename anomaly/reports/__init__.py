"""What a radiologist and an analyst read: figures, one page per scan, the worklist, and the same as PDF.

Everything here reads a ``run/`` folder (``run_folder.py``); nothing here scores. Importing the package is
instant; matplotlib, nilearn and reportlab are imported by the modules that draw.
"""
