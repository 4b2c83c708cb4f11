"""The HTTP surface: one module a surface."""
