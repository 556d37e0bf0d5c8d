"""The page: one `build_…()` per panel, Gradio only; the engine is the only door to the model."""
