"""Numbers of a scan and the findings they lead to."""
