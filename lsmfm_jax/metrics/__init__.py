"""Pure figures of merit: segmentation, classification, image quality, retrieval."""
