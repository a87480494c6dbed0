"""Stand-in for AITER."""
