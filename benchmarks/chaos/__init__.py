"""Break a server on purpose, under load, and compare what it does with what it promises.

    python -m benchmarks.chaos workers --seconds 300
    python -m benchmarks.chaos sockets --quick --base tiny

Each fault is a module with one coroutine, `run`. It starts the real server in a process of its own
and talks HTTP with it. Its report has a line for each promise: what was asked, what was found, and
whether it held. Before a fault some adapters answer some inputs; during and after it, answers have
to be the same, and every adapter that a client was told of has to be there.
"""
