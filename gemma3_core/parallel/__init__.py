"""One model in several processes, each with a device of its own, for weights that no single device holds.

Here belongs how the weights are shared out, how the processes meet, and how all but the first follow its passes.
Nothing here knows of requests: the first process runs an ordinary engine.
"""
