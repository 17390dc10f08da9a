"""From a scan to the template grid, one step per file."""
