"""Benchmarks: how long Kiln takes beside what a person would do by hand, in the same run. ``make bench``; nothing here asserts a time."""
