"""Hygiene of record files before a run: duplicates, length, language, overlap, personal data,
splits.
"""
