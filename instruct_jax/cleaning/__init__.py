"""Makes records fit to learn from: length, language, overlap, duplicates, personal data, splits."""
