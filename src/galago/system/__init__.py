"""The machine: its cores, memory and devices, files, signals, and bars on its terminal."""
