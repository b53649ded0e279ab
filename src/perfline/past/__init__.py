"""What did past sessions measure, and when did it change? ``perfline history``."""
