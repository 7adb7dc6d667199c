"""A dataset in the released layout from one's own videos and a table of actions."""
