"""Serves visitors: the top floor of gemma3_core, and the app's only door to it.

Everything that serves more than one person belongs here: requests, the queue, caches kept between questions, events,
and the models that a server offers. Components import from this package and from nowhere below it.
"""

from gemma3_core.adapters.facts import AdapterFacts
from gemma3_core.engine.api import (
    Answered,
    DoneEvent,
    Event,
    Int4Choice,
    ModelInfo,
    PartialSampling,
    PicturePreview,
    Request,
    StageEvent,
    Stats,
    TokenEvent,
    Turn,
)
from gemma3_core.engine.engine import DEMO_MODEL, DEMO_NAME, Engine, check_picture
from gemma3_core.engine.explain import OcclusionReport, PromptView
from gemma3_core.engine.fields import Field, FieldValue, ask_in_fields, fields_told, read_fields, schema_of, values_of
from gemma3_core.engine.inventory import FoundModel, find_models, free_memory, listing
from gemma3_core.engine.outside import OutsideEngine, told_otherwise
from gemma3_core.engine.registry import PUBLISHED, UNGATED, UNGATED_NAME, Loading, ModelEntry, ModelRegistry
from gemma3_core.engine.rows import SURE, Row, cell, cells_of, columns_of, row_of
from gemma3_core.engine.usage import Usage, usage_of
from gemma3_core.engine.why import HARDLY, WordReport
from gemma3_core.engine.zero_gpu import Lend
from gemma3_core.errors import (
    CheckpointError,
    ContextLengthError,
    Gemma3Error,
    ImageError,
    NonFiniteError,
    OperatorError,
    OutOfMemoryError,
    QueueFullError,
    ReplicaLostError,
    SchemaError,
    StoppedError,
)
from gemma3_core.files.download import size_of
from gemma3_core.generation.grammar import ANY_OBJECT, check_schema
from gemma3_core.generation.sampling import SamplingSettings
from gemma3_core.images.crops import MAX_CROPS, MIN_CROP_SIDE, Crops
from gemma3_core.images.documents import MAX_TAKEN, Document, Taken, open_document, take_frames, take_pages
from gemma3_core.images.fetch import fetch_image
from gemma3_core.images.load import read_data_url
from gemma3_core.images.pan_and_scan import Box, enough_pixels
from gemma3_core.images.unpacking import check_document
from gemma3_core.inspection.confidence import Alternative, TokenChoice, TokenChoices
from gemma3_core.inspection.heat_maps import AttentionMap, TileMap
from gemma3_core.inspection.layers import HeadLook, LayerSaid
from gemma3_core.inspection.mask_view import LayerMask, MaskView
from gemma3_core.inspection.place import Place
from gemma3_core.inspection.prompt import PromptToken
from gemma3_core.inspection.rests_on import RestsOn

__all__ = [
    "ANY_OBJECT",
    "DEMO_MODEL",
    "DEMO_NAME",
    "HARDLY",
    "MAX_CROPS",
    "MAX_TAKEN",
    "MIN_CROP_SIDE",
    "PUBLISHED",
    "SURE",
    "UNGATED",
    "UNGATED_NAME",
    "AdapterFacts",
    "Alternative",
    "Answered",
    "AttentionMap",
    "Box",
    "CheckpointError",
    "ContextLengthError",
    "Crops",
    "Document",
    "DoneEvent",
    "Engine",
    "Event",
    "Field",
    "FieldValue",
    "FoundModel",
    "Gemma3Error",
    "HeadLook",
    "ImageError",
    "Int4Choice",
    "LayerMask",
    "LayerSaid",
    "Lend",
    "Loading",
    "MaskView",
    "ModelEntry",
    "ModelInfo",
    "ModelRegistry",
    "NonFiniteError",
    "OcclusionReport",
    "OperatorError",
    "OutOfMemoryError",
    "OutsideEngine",
    "PartialSampling",
    "PicturePreview",
    "Place",
    "PromptToken",
    "PromptView",
    "QueueFullError",
    "ReplicaLostError",
    "Request",
    "RestsOn",
    "Row",
    "SamplingSettings",
    "SchemaError",
    "StageEvent",
    "Stats",
    "StoppedError",
    "Taken",
    "TileMap",
    "TokenChoice",
    "TokenChoices",
    "TokenEvent",
    "Turn",
    "Usage",
    "WordReport",
    "ask_in_fields",
    "cell",
    "cells_of",
    "check_document",
    "check_picture",
    "check_schema",
    "columns_of",
    "enough_pixels",
    "fetch_image",
    "fields_told",
    "find_models",
    "free_memory",
    "listing",
    "open_document",
    "read_data_url",
    "read_fields",
    "row_of",
    "schema_of",
    "size_of",
    "take_frames",
    "take_pages",
    "told_otherwise",
    "usage_of",
    "values_of",
]
