"""Whole passes over a strict fake host: nothing here touches the machine."""
