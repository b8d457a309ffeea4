"""The run on a GPU: its stages, processes and checks."""
