"""What is known of a checkpoint and of a repair: metrics, weak points, suspects, and what a repair would take."""
