"""What must change: pure, but for temporary files."""
