"""Records as one HTML file without scripts, and without anything from elsewhere."""
