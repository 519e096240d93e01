"""Pictures of what was planned, on PIL alone."""
