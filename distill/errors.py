"""The one exception that the package raises for a mistake of its user."""


class DistillError(ValueError):
    """A mistake the user can mend; its message is one sentence that says how."""
