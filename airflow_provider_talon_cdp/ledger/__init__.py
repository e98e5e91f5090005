"""What Talon.One acknowledged, since its API reads nothing back."""
