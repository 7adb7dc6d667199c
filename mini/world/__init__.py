"""The rendered table-top world."""
