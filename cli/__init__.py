"""The command line: `tricorr`, or `python -m tricorr`."""
