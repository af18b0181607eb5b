"""The evidence: comparisons over seeds (compare), what a network costs (profile), and their tables and pictures."""
