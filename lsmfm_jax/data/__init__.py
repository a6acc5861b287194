"""From files to batches: volumes, stores, captions, splits, loading, generated data."""
