"""Endurance: load from several threads on real servers, with random faults all the while."""
