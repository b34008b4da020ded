"""Human judgments, ratings and votes: reading them, how far annotators agree, scores of items, preference pairs."""
