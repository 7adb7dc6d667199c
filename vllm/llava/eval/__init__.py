"""Commands over the entries of a split: describe, make features, convert features."""
