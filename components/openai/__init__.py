"""OpenAI's interface in front of the engine, for programs that speak it."""
