"""Classifiers: built, fed, trained, asked."""
