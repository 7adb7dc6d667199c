"""Reads rendered frames and judges whether the action is done."""
