"""Records as one HTML file that asks for nothing: no script, no picture, no font from elsewhere."""
