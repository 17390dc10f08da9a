"""The families, one file each, all through the contract of base.py."""
