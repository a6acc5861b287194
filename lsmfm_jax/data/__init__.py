"""From stores and labelled files to batches: splits, patches, tokens, loading."""
