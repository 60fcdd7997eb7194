"""What the library refuses and what fails, in its own words. Ctrl-C is ``KeyboardInterrupt``, as everywhere."""


class Error(Exception):
    """All errors of this package; itself where a file cannot be written."""


class DataError(Error):
    """A text is missing, damaged or too small."""


class ModelError(Error):
    """A path is no model, or the model is damaged."""


class SettingsError(Error, ValueError):
    """A value is out of its bounds, or contradicts another."""


class StreamError(Error, RuntimeError):
    """A stream is closed or in use by another thread, or bytes are not what a stream saved."""


class TrainingError(Error):
    """A run cannot begin, go on or be saved, or has nothing left to do."""
