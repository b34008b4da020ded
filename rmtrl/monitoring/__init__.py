"""After the policy: what it may not say, how it stands up to attacks, and whether what is watched has moved."""
