"""The mHC switch against the real sources of vLLM's releases: ``make contract``."""
