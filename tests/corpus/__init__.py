"""The corpus: images, wheels, logs, servers and operators with one defect each and the check that must catch it; and clean variants. See docs/corpus.md."""
