"""What others get to see of a trained model: its card, its report, exports, and a check of who reads it."""
