"""Mixtures of experts: how a model keeps them, and which tokens reach which expert."""
