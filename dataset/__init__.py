"""Rows: from a file, the hub or the generator to splits, chat texts and batches."""
