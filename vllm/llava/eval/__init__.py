"""Description of whole splits."""
