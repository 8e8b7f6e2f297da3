"""The one exception that stands for a mistake of the person at the keyboard."""


class UserError(ValueError):
    """A setting, file or path that cannot work, told in one line.

    The message names what was received, where, and what would be right; the
    command line programs print it and exit with status 1. Anything else that
    is raised is a defect of this package and keeps its traceback.
    """
