"""Stand-in for MORI."""
