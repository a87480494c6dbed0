"""Stand-in for PyTorch."""
