"""Records of episodes: summary, annotated picture, report. Pure core: no ROS."""
