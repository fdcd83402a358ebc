"""Which method is worth it in which log: made worlds that differ in one thing each, and every method in each."""
