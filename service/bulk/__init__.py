"""Bulk work: files of rows, and batches that answer every row of a file in leftover capacity."""
