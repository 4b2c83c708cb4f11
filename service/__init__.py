"""What is served: settings, errors, wire schemas, the engine, its executors, the HTTP API and the
command line.
"""
