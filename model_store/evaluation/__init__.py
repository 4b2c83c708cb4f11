"""Evaluations: which methods on which tasks from which posteriors, run cell by cell into a results folder."""
