"""What a user runs: each file reads a config, calls the library and writes files."""
