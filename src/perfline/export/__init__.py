"""What do other services read of a record? ``perfline export``."""
