"""What a user did wrong, said in one sentence."""


class UserError(ValueError):
    """A mistake in what was asked for: the command line prints its sentence without a traceback."""
