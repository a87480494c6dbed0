"""Unit tests of the scripts that run inside images; offline, without their packages."""
