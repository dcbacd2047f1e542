"""What benchmarks/deploy_paths.py tries, one file a kind of path."""
