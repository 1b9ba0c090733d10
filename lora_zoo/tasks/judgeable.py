"""The error of a model of which nothing can be judged."""


class NotFinite(ValueError):
    """A model answers with NaN or inf, so that there is nothing to judge."""
