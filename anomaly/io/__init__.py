"""What is a scan here, and how is it read: NIfTI, DICOM, BIDS names, manifests."""
