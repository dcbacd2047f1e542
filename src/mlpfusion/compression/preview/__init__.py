"""What a cut would give, told before any work."""
