"""The typed errors that users see.

Each message says what happened and what to do. It may be shown on a public page, so it never holds a
path of the server, an address or a stack trace.
"""

from collections.abc import Iterable


class Gemma3Error(Exception):
    """Base of every error that the user can fix; `str(error)` can be shown to anyone."""


class ConfigError(Gemma3Error, ValueError):
    """A config.json (or a config object) that describes no possible Gemma 3 model."""


class FrozenConfigError(ConfigError, AttributeError):
    """A field of a frozen configuration was set."""


class CheckpointError(Gemma3Error, OSError):
    """A checkpoint is not found, lacks a file or a tensor, or holds one of the wrong shape or type."""


class UnsupportedOptionError(Gemma3Error, ValueError):
    """An option that this implementation does not know or support; it is never ignored silently."""


class ChatTemplateError(Gemma3Error, ValueError):
    """Messages that the checkpoint's chat template rejects, such as roles that do not alternate."""


class ImageError(Gemma3Error, ValueError):
    """A picture that can't be read or is larger than allowed."""


class PromptError(Gemma3Error, ValueError):
    """A prompt that is empty, or whose pictures do not match their places in the text."""


class ContextLengthError(PromptError):
    """Prompt and requested answer are together longer than the model's context."""


class SamplingError(Gemma3Error, ValueError):
    """Sampling settings out of range."""


class SchemaError(Gemma3Error, ValueError):
    """A JSON schema that no answer can fit, that is not supported, or that is too much work."""


class AttentionError(Gemma3Error, ValueError):
    """Attention that can't be shown: pictures gone, model changed, prompt too long, or no such token."""


class NonFiniteError(Gemma3Error, ArithmeticError):
    """The model computes NaN or infinity, so there is no answer."""


class StoppedError(Gemma3Error, RuntimeError):
    """Work that its caller cancelled."""


class OutOfMemoryError(Gemma3Error, RuntimeError):
    """The device has no memory for a request, also without what was kept of earlier ones."""


class QueueFullError(Gemma3Error, RuntimeError):
    """The queue is full; try again in a moment."""


class ReplicaLostError(Gemma3Error, RuntimeError):
    """The machine that was answering has failed, or none answers; asking again may reach another one."""


class OperatorError(Gemma3Error, RuntimeError):
    """What only the operator of the server can mend: another server wants another key, or lacks the model."""


def require_known(where: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Raises UnsupportedOptionError that names the unknown options and lists the known ones."""
    if unknown := sorted(set(names) - set(known)):
        listed = ", ".join(sorted(known))
        raise UnsupportedOptionError(f"{where} has no option {', '.join(unknown)}. The known ones are {listed}.")
