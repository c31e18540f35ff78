"""The one error that users see as a single line."""


class ClaraError(Exception):
    """Bad input, named so that the reader can mend it.

    The message is one line: what is wrong, where (file and line, or config field) and
    what to do. Commands print it as ``error: ...`` and exit with status 1; library code
    lets it pass. Anything else that escapes a command is a bug.
    """
