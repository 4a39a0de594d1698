"""DECIDES: values and pure functions. It never reads the machine, the clock or a file, and never logs."""
