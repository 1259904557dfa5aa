"""The engine process: its socket, its clients, and what each command does."""
