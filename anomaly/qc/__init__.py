"""Quality control of scans as received: image quality metrics, and the findings that follow from them."""
