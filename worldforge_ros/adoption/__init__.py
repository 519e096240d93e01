"""Taking up a new robot: from a URDF and a checkpoint to an embodiment file, and its check."""
