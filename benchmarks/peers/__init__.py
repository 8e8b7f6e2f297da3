"""What others have for the same work, to be measured beside it."""
