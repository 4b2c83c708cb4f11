"""The engine: admission, adapter identity, the adapter registry and the order of work. Knows no HTTP."""
