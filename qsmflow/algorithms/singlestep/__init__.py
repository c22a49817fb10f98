"""Inversions that start from the total field: background removal and dipole inversion in one problem."""
