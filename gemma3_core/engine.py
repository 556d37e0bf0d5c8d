"""What an app needs: load a checkpoint, queue questions, stream answers, preview pictures.

The engine is the only door for components: they import from here and from nowhere below.
"""

from gemma3_core.errors import Gemma3Error
from gemma3_core.events import (
    DoneEvent,
    Event,
    ModelInfo,
    PicturePreview,
    Request,
    StageEvent,
    Stats,
    TokenEvent,
    Turn,
)
from gemma3_core.sampling import SamplingSettings
