"""The files of `docker/`, each checked by the tool that it is for."""
