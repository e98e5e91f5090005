"""The ledger: what Talon.One acknowledged, as its API reads nothing back."""
