"""Where the state that Talon.One acknowledged is kept."""
