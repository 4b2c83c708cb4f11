"""The engine: admission, adapters and their ids, and the order of work. Knows no HTTP."""
