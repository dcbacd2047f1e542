"""Folded models in the forms that other engines load: one file a target."""
