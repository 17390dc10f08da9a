"""Find and read scans: NIfTI, DICOM, BIDS names, zips and manifests."""
