"""Writers of the measured tables and figures in docs/. Not part of the wheel."""
