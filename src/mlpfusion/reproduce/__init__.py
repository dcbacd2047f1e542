"""Grids of fine-tuning runs from YAML files: the tables and figures of the paper, on any model."""
