"""A request's inputs as a program makes them, to compare with the engine's."""

from gemma3_core.engine import Engine, Request
from gemma3_core.model_inputs import ModelInputs


def inputs_of(engine: Engine, request: Request) -> ModelInputs:
    """Runs the processor on the pictures themselves, as a program would; the engine works from headers and tiles."""
    messages, cuts, crops = [], [], []
    if request.system_prompt.strip():
        messages.append({"role": "system", "content": [{"type": "text", "text": request.system_prompt}]})
    for turn in request.turns:
        parts = [{"type": "image", "image": image} for image in turn.pictures]
        messages.append({"role": turn.role, "content": [*parts, {"type": "text", "text": turn.text}]})
        cuts += [request.pan_and_scan if turn.pan_and_scan is None else turn.pan_and_scan] * len(turn.pictures)
        crops += turn.crops or [None] * len(turn.pictures)
    processor = engine._processor
    inputs = processor.apply_chat_template(
        processor.escape_messages(messages), tokenize=True, return_dict=True, return_tensors="pt",
        add_generation_prompt=True, do_pan_and_scan=cuts, **({"crops": crops} if any(crops) else {}),
    )  # fmt: skip
    return inputs.to(engine._model.device, engine._model.dtype)
