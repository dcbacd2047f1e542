"""The stock form of a compressed model: what plain transformers and other engines load."""
