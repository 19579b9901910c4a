"""Errors that a user can do something about: one line that names the way out, and an exit code."""


class UserError(Exception):
    """Wrong usage, settings or input files. The message is one line and says the fix."""

    exit_code = 2


class EnvironmentCannot(UserError):
    """The machine lacks what the work needs: memory, disk, network, a model."""

    exit_code = 3


class AskAgain(EnvironmentCannot):
    """The machine cannot just now; in a moment it can."""


class Cancelled(Exception):
    """The user stopped the work; what was finished is on disk."""

    exit_code = 130
