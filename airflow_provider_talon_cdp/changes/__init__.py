"""What must change in Talon.One: pure, but for temporary files."""
