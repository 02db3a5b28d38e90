"""What every package stands on: the error users see, typed settings and crash-safe files."""
