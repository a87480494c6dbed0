"""Stand-in for AMD SMI."""
