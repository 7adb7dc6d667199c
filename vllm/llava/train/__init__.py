"""Visual instruction tuning."""
