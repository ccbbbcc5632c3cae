"""This machine: files that are whole or absent, locks, object stores, secrets, devices and versions."""
