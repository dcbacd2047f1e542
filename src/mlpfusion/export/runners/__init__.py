"""Scripts that run an exported model in a process without this package."""
