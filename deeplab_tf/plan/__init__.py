"""Memory and time of a training step, measured before anything is trained."""
