"""Many questions about one input: what an adapter of several questions learns, and what it costs."""
