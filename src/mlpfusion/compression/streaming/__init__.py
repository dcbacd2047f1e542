"""Compression from checkpoint to checkpoint, with one block in memory at a time."""
