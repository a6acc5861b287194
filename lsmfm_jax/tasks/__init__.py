"""What one step computes and one evaluation reports, a file for each task."""
