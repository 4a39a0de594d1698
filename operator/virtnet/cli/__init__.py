"""The commands: they parse arguments, call the engine and print; they decide nothing and touch the machine nowhere."""
