"""The typed errors that users meet.

Each message says what was got, what was expected and what to do about it; it may be shown on a
public page, so it never holds a path of the server, an address or a stack trace.
"""


class Gemma3Error(Exception):
    """Base of every error that is the user's to mend; `str(error)` is fit to be shown."""


class ConfigError(Gemma3Error, ValueError):
    """A config.json (or a config object) says something that no Gemma 3 model can be."""


class FrozenConfigError(ConfigError, AttributeError):
    """A field of a configuration was set; these are frozen."""


class CheckpointError(Gemma3Error, OSError):
    """A checkpoint folder lacks a file or a tensor, or holds one of the wrong shape or type."""


class UnsupportedOptionError(Gemma3Error, ValueError):
    """An option that this implementation does not know or support; never ignored in silence."""


class ChatTemplateError(Gemma3Error, ValueError):
    """Messages that the checkpoint's chat template refuses (roles that do not alternate, …)."""


class ImageError(Gemma3Error, ValueError):
    """Something given as a picture that can't be read as one, or is larger than allowed."""


class PromptError(Gemma3Error, ValueError):
    """A prompt that can't be asked: empty, or pictures and their places in the text differ."""


class ContextLengthError(PromptError):
    """Prompt and requested answer are together longer than the model's context."""


class SamplingError(Gemma3Error, ValueError):
    """Sampling settings out of range."""


class AttentionError(Gemma3Error, ValueError):
    """Attention that can't be shown: pictures gone, another model by now, too long, no such token."""


class StoppedError(Gemma3Error, RuntimeError):
    """Work that was given up at the wish of whoever asked for it."""


class QueueFullError(Gemma3Error, RuntimeError):
    """Too many questions are waiting already; try again in a moment."""
