"""The parts of `terraloom retrain`: what it is told, what it remembers of its rounds, and a file for each stage of one."""
