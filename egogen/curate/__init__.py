"""Enriched descriptions from action labels, and the conversations that stage 1 is tuned on."""
