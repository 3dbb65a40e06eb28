"""Certification as a resumable batch pipeline over Ray."""
