"""Errors that are the user's to mend: each message is one line that names what is wrong and the remedy."""


class InputError(Exception):
    """One input (an audio file) cannot be used; the others can.  Exit code 1."""


class ModelError(Exception):
    """The model fails on one input, which is not at fault.  Exit code 1."""


class SetupError(Exception):
    """The request cannot be carried out here: checkpoint, device or environment.  Exit code 2."""


class Unsupported(Exception):
    """The native engine does not know this kind of checkpoint; stock NeMo may.  The message names the feature."""


def first_line(error: Exception) -> str:
    """What a library's error says, in one line; its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
