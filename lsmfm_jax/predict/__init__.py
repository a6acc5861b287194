"""From a trained run and image files to masks, classes or deblurred volumes on disk."""
