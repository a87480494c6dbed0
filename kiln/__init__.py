"""Kiln builds, verifies, publishes and pulls reproducible container images that serve DeepSeek V4."""

__version__ = "0.1.0"
