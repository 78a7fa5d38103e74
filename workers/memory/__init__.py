"""The memory itself: features, scorer, selection, the cache that forgets, and its rivals."""
