"""Runs the tables and figures of the paper on any model, from YAML files."""
