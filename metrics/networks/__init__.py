"""Networks that metrics are measured with."""
