"""Presets, images and manifests; nothing imports this package except to find its files."""
