"""Our networks in other frameworks, for comparison."""
