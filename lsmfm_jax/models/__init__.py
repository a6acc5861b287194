"""Networks: two backbones, a text tower, heads."""
