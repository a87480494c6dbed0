"""Stand-in for torchaudio."""
