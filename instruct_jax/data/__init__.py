"""Host side, numpy: records on disk -> normalised dicts -> token ids -> rows -> batches."""
