"""Plugins that come with Penstock, through the same door as everybody's."""
