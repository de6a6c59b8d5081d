"""Process groups, the collectives contract, and what crosses pipeline stages."""
