"""Mending: what a user has marked as a leak is trained away, from the adapter as it is."""
