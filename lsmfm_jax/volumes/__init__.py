"""Image files to arrays and back: formats, names, voxel sizes."""
