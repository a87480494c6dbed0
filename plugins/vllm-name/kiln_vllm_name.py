"""Nothing to import: this distribution exists for its metadata. See its README."""
