"""How the sample scans are made, one step per module.

``anatomy`` tissue maps of the template · ``head`` skull and scalp around them · ``subjects`` distribution of
subjects · ``grid`` voxel grids · ``lesions`` planted lesions · ``density`` calcifications, venous blood and beam
hardening in CT · ``scanner`` simulated MR and CT · ``nifti`` and ``dicom`` files · ``refuse`` scans that must be
refused · ``cohort`` list of subjects.
"""
