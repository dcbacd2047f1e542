"""The one error that a user can cause and mend, and the one warning about a result."""


class InputError(ValueError):
    """Bad input. The message is one line: the field, the allowed values, the value given."""


class DegenerateClusteringWarning(UserWarning):
    """One cluster swallowed a large part of the neurons while most others hold a single one."""
