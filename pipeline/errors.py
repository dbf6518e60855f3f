"""The base of every error that the input caused: the command line shows it without a traceback."""


class PipelineError(Exception):
    """What was given cannot be used; the message says what is allowed and the way out.

    Every one of them also subclasses the builtin that fits it, so library users may catch either.
    """


class DataError(PipelineError, ValueError):
    """The examples cannot be used; the message names the file, the lines and the way out."""
