"""What can go wrong offline, in words a person can act on.

    TrainingError           anything below; the program prints it without a stack trace
      RecipeError           the recipe, or a --set, does not say what it should
      NetworkError          a network does not know an option, or cannot work on the fields there are
      DataError             a log cannot be read as its schema says: file, line, field, expected, came
      SplitError            a part of the split is empty or without both labels
      DivergedError         a loss became NaN or infinite, or ran away: where, and which setting to lower
      ExportError           an exported graph does not answer as the network it came from
      PackError             a graph trained elsewhere, its vocabularies and its rows do not fit each other
      StepError             a step of a run failed or its process died
      OutOfMemoryError      a step found no memory: what it needs it for, and which setting to lower

Nothing here knows of exit codes: `cli.py` does.
"""


class TrainingError(Exception):
    """Base of all that the offline program reports; its text is the whole message."""


class RecipeError(TrainingError):
    """The recipe, or an override of it, is refused before anything runs."""


class NetworkError(TrainingError, ValueError):
    """A network cannot be built so: its name, an option, or fields that it has no use for."""


class DataError(TrainingError):
    """A log is refused. The text names the file, line and field, what was expected and what came."""


class SplitError(TrainingError):
    """The split leaves a part that nothing can be learned from or measured on."""


class DivergedError(TrainingError):
    """Training left the finite numbers, or what its loss began with, far behind."""


class ExportError(TrainingError):
    """ONNX and torch disagree, or the graph cannot be written."""


class PackError(TrainingError):
    """A model trained elsewhere is refused: which file and field, what was expected, what came, what to do."""


class StepError(TrainingError):
    """A step of a run failed; what was finished before it is kept."""


class OutOfMemoryError(TrainingError):
    """A step found no memory. The text says what takes it and which setting to lower."""
