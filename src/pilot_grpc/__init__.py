"""Pilot: the spend-control plane for AI agents."""
