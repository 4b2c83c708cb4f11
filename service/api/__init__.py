"""The HTTP interface: one package for each surface, and the files that all surfaces share."""
