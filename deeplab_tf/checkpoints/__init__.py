"""Loading and saving weights by their official names."""
