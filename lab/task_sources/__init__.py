"""The training collection from public sources: which files of the hub, and what their rows mean."""
