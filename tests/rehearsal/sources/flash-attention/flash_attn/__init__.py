"""Stand-in for flash-attention."""
