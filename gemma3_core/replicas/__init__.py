"""Several replicas of the engine behind Ray Serve, on this machine or on a cluster; the page in front sees one engine.

What knows of Ray belongs here, and nothing of how a question is answered: a replica holds an ordinary ModelRegistry,
and `RemoteEngine` stands in for its engines behind the same door. Ray is optional; `options`, `wire` and `replica` do
without it.
"""
