"""Recordings: reading MCAP and sqlite3 bags without a ROS installation."""
