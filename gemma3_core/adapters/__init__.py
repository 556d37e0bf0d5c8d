"""LoRA adapters as peft saves them: their files, what their config means, and the layers that add them to a model's.

Files become checked configs and tensors here, and factors become layers. Which of a model's layers an adapter changes
is decided in `models.adapters`; nothing here knows a model's names.
"""
