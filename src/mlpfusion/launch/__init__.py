"""Other people's tools in processes that import this package."""
