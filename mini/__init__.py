"""EgoGen-mini: first-person table scenes in the released layout, and an oracle for them."""
