"""How the sample scans are made, one room per file.

``anatomy`` tissue maps of the template · ``head`` the skull and scalp put around them · ``subjects`` the random
law of one subject · ``grid`` where its voxels lie · ``lesions`` planted lesions · ``scanner`` maps to MR and CT
voxels · ``nifti`` and ``dicom`` files · ``refuse`` scans that must be refused · ``cohort`` who is made.
"""
