"""Human feedback: the labeling page, its store, and what comes out of it."""
